"""The table and the files of `make bench-binary`; the measuring itself needs the binary."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

import pytest

from bench import binary
from bench.binary import COMPARED
from bench.reports import Measured, Row, table

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the binary is measured on Linux")

ROWS = [
    Row("file size", Measured("MB", (281.234,)), None, "≤ 320 MB", True),
    Row("vramancer --help", Measured("s", (0.5, 0.4, 0.9)), Measured("s", (0.1, 0.2, 0.15)), "≤ 3 x", False, 4.5),
]


def test_a_row_has_the_figures_the_goal_and_whether_it_was_reached() -> None:
    assert table(ROWS, COMPARED).splitlines() == [
        "|  | one file | Python | ratio | goal |  |",
        "| --- | --- | --- | --- | --- | --- |",
        "| file size | 281 MB |  |  | ≤ 320 MB | reached |",
        "| vramancer --help | 0.5 s (0.4 to 0.9, 3 times) | 0.15 s (0.1 to 0.2, 3 times) | 4.50 x | ≤ 3 x "
        "| **missed** |",
    ]


def test_the_files_say_the_same_and_name_no_machine(tmp_path: Path) -> None:
    text = binary.write(ROWS, binary.surroundings(), tmp_path / "results")
    assert (tmp_path / "results" / "binary.md").read_text("utf-8") == text
    data = json.loads((tmp_path / "results" / "binary.json").read_text("utf-8"))
    assert [row["name"] for row in data["rows"]] == ["file size", "vramancer --help"]
    assert data["rows"][1]["measured"] == {
        "unit": "s",
        "median": 0.5,
        "min": 0.4,
        "max": 0.9,
        "values": [0.5, 0.4, 0.9],
    }
    assert data["cores"] == str(os.cpu_count())
    assert data["date"] in text and data["cpu"] in text and f"Python {platform.python_version()}" in text
    for secret in (platform.node(), str(Path.home()), str(tmp_path)):
        assert len(secret) < 3 or secret not in text + json.dumps(data)


@pytest.fixture
def scripts(tmp_path: Path) -> tuple[Path, Path]:
    """Two programs that count their runs in one file."""
    made: list[Path] = []
    for name in ("binary", "venv"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\nprintf '{name[0]}' >> {tmp_path}/runs\n")
        path.chmod(0o755)
        made.append(path)
    return made[0], made[1]


def test_small_verbs_run_in_turn_after_one_run_that_does_not_count(scripts: tuple[Path, Path], tmp_path: Path) -> None:
    options = binary._options([str(scripts[0]), "--venv", str(scripts[1]), "--repetitions", "3"])
    row = binary._small_verb(binary._places(tmp_path / "root", options), ["--help"], options.repetitions)
    assert (tmp_path / "runs").read_text() == "bv" * 4
    assert len(row.measured.values) == 3
    assert row.other is not None and len(row.other.values) == 3


@pytest.mark.parametrize(("ours", "reached"), [((0.5, 0.55, 0.59), True), ((0.5, 0.61, 0.62), False)])
def test_a_goal_in_seconds_counts_the_median(
    ours: tuple[float, ...], reached: bool, scripts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binary, "_in_turn", lambda *_: (Measured("s", ours), Measured("s", (0.3, 0.3, 0.3))))
    places = binary._places(tmp_path / "root", binary._options([str(scripts[0])]))
    assert binary._small_verb(places, ["--help"], 3).reached is reached


def test_the_ratio_is_that_of_the_pairs() -> None:
    """A machine that is slow for a while is slow for both of a pair."""
    slow_at_last = Measured("s", (1.0, 1.0, 8.0)), Measured("s", (0.5, 0.5, 4.0))
    assert binary._ratio(*slow_at_last) == 2.0
    assert binary._ratio(Measured("s", (1.0, 4.0, 8.0)), Measured("s", (1.0, 1.0, 4.0))) == 2.0


def test_without_a_file_it_says_how_to_build_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert binary.main([str(tmp_path / "nothing")]) == 2
    assert "make binary" in capsys.readouterr().err
