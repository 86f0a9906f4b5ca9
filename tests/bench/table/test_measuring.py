"""Pairs in turn, the better of two arrangements, and what happens when one of them goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from bench.table.cells import CELLS, Work
from bench.table.measuring import _pairs, best
from bench.table.streams import NotMeasuredError


@dataclass
class Told:
    """Somebody whose speed is known; it fails as often as `failures` says."""

    name: str
    speed: float
    diary: list[str] = field(default_factory=list)
    failures: int = 0

    def prefill(self, tokens: int) -> float:
        self.diary.append(f"{self.name} {tokens}")
        if self.failures:
            self.failures -= 1
            raise NotMeasuredError("late")
        return self.speed

    def decode(self, prompt_tokens: int, tokens: int, streams: int = 1) -> float:
        return self.prefill(tokens)


A, *_ = (replace(cell, repetitions=2) for cell in CELLS)


def test_ours_and_theirs_take_turns():
    diary: list[str] = []
    found = _pairs(A, 8, Told("ours", 30.0, diary), {"alone": Told("theirs", 20.0, diary)})
    assert diary == ["ours 128", "theirs 128"] * 2
    assert (found.ours, found.theirs, found.arrangement) == ((30.0, 30.0), (20.0, 20.0), "alone")


def test_the_peer_runs_in_its_faster_arrangement_after_a_short_trial():
    slow, fast = Told("slow", 5.0), Told("fast", 9.0)
    assert best({"slow": slow, "fast": fast}, Work(16, 32, 16)) == ("fast", fast)
    assert slow.diary == ["slow 8"]


def test_a_pair_that_failed_once_is_measured_again_and_one_that_fails_twice_is_no_row():
    found = _pairs(A, 8, Told("ours", 30.0, failures=1), {"alone": Told("theirs", 20.0)})
    assert found.ours == (30.0, 30.0)
    with pytest.raises(NotMeasuredError):
        _pairs(A, 8, Told("ours", 30.0, failures=2), {"alone": Told("theirs", 20.0)})
