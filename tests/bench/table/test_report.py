from __future__ import annotations

from pathlib import Path

import pytest

from bench.table import growth_report, matrix, report
from bench.table.growth import Curve, Point
from bench.table.matrix import Line, Scene
from bench.table.report import Other, Record, Report, merged

AROUND = {"date": "2026-01-02", "cpu": "A processor"}
RECORDS = (
    Record("B", 8, (20.0, 22.0, 10.0), (20.0, 20.0, 20.0), 1_240_000_000, 1_170_000_000, "one process"),
    Record("A", 4, (150.0,), (100.0,), 810_000_000, 620_000_000, "one process"),
)


def test_a_row_has_both_figures_the_ratio_of_the_pairs_the_goal_and_the_bytes():
    text = Report(AROUND, RECORDS, (Other("generate, prefill 128", (33.0,)),)).markdown()
    ours, theirs = "20 tokens/s (10 to 22, 3 times)", "20 tokens/s (20 to 20, 3 times)"
    name = "B8 decode, 1 stream, one process, 2 threads"
    assert f"| {name} | {ours} | {theirs} | 1.00 x | ≥ 0.95 x | reached |" in text
    assert "| A4 prefill 128, one process, 2 threads | 150 tokens/s | 100 tokens/s | 1.50 x | ≥ 1 x | reached |" in text
    assert "| B8 | int8 1.24 GB / Q8_0 1.17 GB | one process |" in text
    assert "| generate, prefill 128 | 33 tokens/s |" in text
    assert "2026-01-02" in text and "2 of 14 cells reached, 2 measured" in text


def test_cells_of_another_run_take_the_place_of_theirs(tmp_path: Path):
    report.write(Report(AROUND, RECORDS), tmp_path)
    slower = Record("A", 4, (50.0,), (100.0,), 1, 1, "one process")
    told = merged(report.read(tmp_path), AROUND, [slower], ())
    assert told.records == (RECORDS[0], slower)
    assert told.records[1].row().reached is False
    report.write(told, tmp_path)
    assert report.read(tmp_path) == told


def test_nothing_was_measured_where_nothing_lies(tmp_path: Path):
    assert report.read(tmp_path).records == ()
    assert matrix.read(tmp_path / "full.jsonl") == []


CURVE = Curve(
    "context",
    "1 stream",
    (
        Point(128, 30.0, 30.0, "what a step costs whatever its rows"),
        Point(1024, 28.0, 29.0, "what a step costs whatever its rows"),
        Point(8192, 9.0, 10.0, "looking back at the context"),
    ),
)


def test_a_page_of_curves_has_pictures_figures_and_a_sentence_for_each_knee(tmp_path: Path):
    text = growth_report.write([CURVE], AROUND, tmp_path)
    assert "| 8192 | 9 | 10 |" in text and "(growth-context.svg)" in text
    assert CURVE.sentences() == [
        "context 1024, 1 stream: behind it most of a step is looking back at the context, no longer what a step costs "
        "whatever its rows; as the model has it."
    ]
    assert f"- {CURVE.sentences()[0]}\n" in text
    picture = (tmp_path / "growth-context.svg").read_text()
    assert "1 stream, measured" in picture and "1 stream, predicted" in picture
    growth_report.write([CURVE], AROUND, tmp_path)
    assert (tmp_path / "growth-context.svg").read_text() == picture


SCENE = Scene(8, 2, "1ms")


def test_a_matrix_that_was_stopped_goes_on_with_what_is_missing(tmp_path: Path):
    words = "--bits 8 --processes 1 2 --ways loopback 1ms --prompts 128 --streams 4"
    options = matrix._options(words.split())
    assert set(matrix.missing([], options)) == {Scene(8, 1, "loopback"), Scene(8, 2, "loopback"), SCENE}
    matrix.keep(Line(SCENE, 128, 4, 20.0, 10.0, 25.0), tmp_path / "full.jsonl")
    kept = matrix.read(tmp_path / "full.jsonl")
    assert matrix.missing(kept, options)[SCENE] == [(128, 0)]
    assert "| 8 bit | 2 x 1 core, 1ms | decode, 4 streams behind 128 | 20 | 10 | 2.00 x | 25 |  |" in matrix.markdown(
        kept, AROUND
    )


@pytest.mark.parametrize("streams", [0, 16])
def test_a_row_that_did_not_run_says_why(streams: int):
    line = Line(SCENE, 128, streams, None, 10.0, 25.0, "15 of 16 streams ran")
    assert line.cells()[-1] == "15 of 16 streams ran" and line.cells()[-3] == ""
