"""Which KV blocks are free: ids are given out once here and are valid on every stage.

Keeps block tables consecutive where it can, because attention reads consecutive blocks as a view and gathers others.
Pure; where a block lies in memory is a stage's business.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping

from vramancer_cli.errors import VramancerError

Run = tuple[int, int]
"""Free blocks `[start, end)`."""


class IntegrityError(VramancerError):
    """The block tables contradict each other."""


class BlockPool:
    """`block_count` blocks of `block_tokens` tokens each, of one cache group."""

    def __init__(self, block_count: int, block_tokens: int) -> None:
        if block_count < 1 or block_tokens < 1:
            raise ValueError(f"A pool of {block_count} blocks of {block_tokens} tokens holds nothing.")
        self.block_count = block_count
        self.block_tokens = block_tokens
        self.free_count = block_count
        # Sorted, disjoint, and never touching: touching runs are merged as they are given back.
        self._runs: list[Run] = [(0, block_count)]

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` tokens fill or begin."""
        return -(-tokens // self.block_tokens)

    def take(self, count: int, *, after: int | None = None) -> tuple[int, ...]:
        """`count` block ids, the first following block `after` where that is free, consecutive where that is possible.

        Raises ValueError when fewer are free: ask `free_count` first.
        """
        if count > self.free_count:
            raise ValueError(f"{count} blocks were asked for, {self.free_count} are free.")
        taken: list[int] = [] if after is None else [*self._take_following(after + 1, count)]
        while len(taken) < count:
            taken += self._take_from_longest(count - len(taken))
        return tuple(taken)

    def give_back(self, blocks: Iterable[int]) -> None:
        """Raises IntegrityError for a block that is free already or does not exist."""
        merged: list[Run] = []
        for start, end in sorted([*self._runs, *_runs_of(blocks)]):
            if start < 0 or end > self.block_count or (merged and start < merged[-1][1]):
                raise IntegrityError(f"Blocks {start} to {end - 1} were given back, but not all were taken.")
            if merged and start == merged[-1][1]:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        self._runs = merged
        self.free_count = sum(end - start for start, end in merged)

    def check_integrity(self, owners: Mapping[int, Iterable[int]]) -> None:
        """`owners`: sequence id -> block table. Raises IntegrityError unless every block is free or owned just once."""
        owner_of: dict[int, int] = {}
        for owner, blocks in owners.items():
            for block in blocks:
                if block in owner_of:
                    raise IntegrityError(f"Block {block} is owned by sequences {owner_of[block]} and {owner}.")
                owner_of[block] = owner
        free = {block for start, end in self._runs for block in range(start, end)}
        for block, owner in owner_of.items():
            if block in free or not 0 <= block < self.block_count:
                raise IntegrityError(f"Block {block} of sequence {owner} was never taken.")
        if leaked := self.block_count - len(free) - len(owner_of):
            raise IntegrityError(f"{leaked} blocks are neither free nor owned.")

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
        self.free_count -= end - start
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
