"""FreeRuns: what comes back is merged, and what is taken lies together."""

from __future__ import annotations

import pytest

from vramancer_cli.errors import IntegrityError
from vramancer_cli.scheduling.free_runs import FreeRuns


def test_runs_merge_as_they_come_back() -> None:
    runs = FreeRuns(6)
    assert runs.take(6) == (0, 1, 2, 3, 4, 5)
    runs.add((4, 0))
    runs.add((1, 5))
    assert (list(runs), runs.count) == ([0, 1, 4, 5], 4)
    runs.add((2, 3))
    assert runs.take(6) == (0, 1, 2, 3, 4, 5)


def test_a_newcomer_leaves_its_neighbour_room_to_grow() -> None:
    runs = FreeRuns(10)
    first = runs.take(2)
    second = runs.take(2)
    assert second[0] > first[-1] + 1
    assert runs.take(1, after=first[-1]) == (first[-1] + 1,)


@pytest.mark.parametrize("blocks", [(0, 0), (-1,), (4,), (3,)])
def test_what_was_not_taken_does_not_come_back(blocks: tuple[int, ...]) -> None:
    runs = FreeRuns(4)
    assert runs.take(2) == (0, 1)
    with pytest.raises(IntegrityError, match="not all were taken"):
        runs.add(blocks)
    assert (list(runs), runs.count) == ([2, 3], 2)
