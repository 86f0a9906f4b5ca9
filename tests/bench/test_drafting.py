from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import drafting
from bench.edited_files import ASK, EDITS, ROOT, edited_files
from tests.helpers.checkpoints import make_checkpoint
from vramancer_cli.models.catalog import builtin_folder
from vramancer_cli.serving.text import TextTools


def test_every_edit_changes_its_file_and_leaves_most_of_it() -> None:
    tools = TextTools.load(builtin_folder())
    for file in edited_files(tools):
        before, after = tools.decode(file.prompt).removesuffix(ASK), tools.decode(file.answer)
        assert before == (ROOT / file.name).read_text("utf-8")
        assert all(old in before and new in after for old, new in EDITS[file.name])
        kept = set(before.splitlines()) & set(after.splitlines())
        assert 0.5 < len(kept) / len(set(before.splitlines())) < 1


def test_runs_of_four_are_counted_once() -> None:
    assert drafting.distinct_share([1, 2, 3, 4, 5]) == 1.0
    assert drafting.distinct_share([1] * 7) == 0.25
    assert drafting.distinct_share([1, 2]) == 0.0


def test_a_case_is_measured_with_and_without_and_written_down(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=2)
    asks = [[drafting.Ask((5, 6, 7, 5, 6), 12)], [drafting.Ask((9, 9, 9), 12)]]
    case = drafting.Case("tiny", folder, asks, frozenset(), trips_goal=1.0, stages=(2,))
    rows = case.measure(2, 2)
    assert [row.measured.unit for row in rows] == ["tokens/trip", "tokens/s"]
    assert rows[0].reached and all(len(row.measured.values) == 2 and row.ratio for row in rows)
    drafting.write(rows, {"date": "today"}, tmp_path)
    assert len(json.loads((tmp_path / "drafting.json").read_text())["rows"]) == 2
    assert "| tiny, 2 stages |" in (tmp_path / "drafting.md").read_text()


def test_an_answer_that_drafting_changes_is_no_result(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", num_hidden_layers=2)
    case = drafting.Case("tiny", folder, [[drafting.Ask((5, 6), 3)]], frozenset())

    class Liar(drafting.Head):
        def answer(self, asks: object) -> drafting.Run:
            return drafting.Run([[1, 2, 3]], 1, 3, 1.0)

    honest = drafting.Head(folder, 1, 0)
    with pytest.raises(AssertionError, match="changed an answer"):
        case._turn(Liar(folder, 1, None), honest, flip=False)
    honest.close()
