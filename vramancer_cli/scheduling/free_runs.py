"""Free blocks as runs of consecutive ids, so that block tables stay consecutive where they can.

Attention reads consecutive blocks as a view and joins or gathers others. Who uses a block is the pool's business.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

from vramancer_cli.errors import IntegrityError

Run = tuple[int, int]
"""Free blocks `[start, end)`."""


class FreeRuns:
    """Free ones among blocks 0 to `block_count` - 1: all of them at first."""

    def __init__(self, block_count: int) -> None:
        self.count = block_count
        self._block_count = block_count
        # Sorted, disjoint, and never touching: touching runs are merged as they come back.
        self._runs: list[Run] = [(0, block_count)]

    def __iter__(self) -> Iterator[int]:
        return (block for start, end in self._runs for block in range(start, end))

    def take(self, count: int, *, after: int | None = None) -> tuple[int, ...]:
        """`count` blocks, which must be free: the first following block `after` where that is free, consecutive where
        that is possible."""
        taken: list[int] = [] if after is None else [*self._take_following(after + 1, count)]
        while len(taken) < count:
            taken += self._take_from_longest(count - len(taken))
        return tuple(taken)

    def add(self, blocks: Iterable[int]) -> None:
        """Raises IntegrityError, and changes nothing, for a block that is free already or does not exist."""
        merged: list[Run] = []
        for start, end in sorted([*self._runs, *_runs_of(blocks)]):
            if start < 0 or end > self._block_count or (merged and start < merged[-1][1]):
                raise IntegrityError(f"Blocks {start} to {end - 1} were given back, but not all were taken.")
            if merged and start == merged[-1][1]:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        self._runs = merged
        self.count = sum(end - start for start, end in merged)

    def _take_following(self, start: int, count: int) -> range:
        index = bisect_left(self._runs, (start, start))
        if index == len(self._runs) or self._runs[index][0] != start:
            return range(0)
        return self._cut(index, start, count)

    def _take_from_longest(self, count: int) -> range:
        index = max(range(len(self._runs)), key=lambda i: self._runs[i][1] - self._runs[i][0])
        start, end = self._runs[index]
        # Whoever owns the block before this run will want to grow into it: leave it half of what is over.
        room = (end - start - count) // 2 if start > 0 and end - start > count else 0
        return self._cut(index, start + room, count)

    def _cut(self, index: int, start: int, count: int) -> range:
        """Up to `count` blocks from `start` on, out of run `index`."""
        run_start, run_end = self._runs[index]
        end = min(start + count, run_end)
        left_over = ((run_start, start), (end, run_end))
        self._runs[index : index + 1] = [run for run in left_over if run[0] < run[1]]
        self.count -= end - start
        return range(start, end)


def _runs_of(blocks: Iterable[int]) -> Iterator[Run]:
    """Block ids in any order as runs; an id given twice becomes two overlapping runs."""
    start = end = 0
    for block in sorted(blocks):
        if block != end or start == end:
            if start < end:
                yield start, end
            start = block
        end = block + 1
    if start < end:
        yield start, end
