"""Which KV blocks are used, by how many sequences, and what the unused ones still hold.

Ids are given out once here and are valid on every stage. A full block may be kept under the digest of all tokens up to
its end: the next sequence that begins with these tokens shares it. Kept blocks that nobody uses are given out last, the
least recently used first. Pure; where a block lies in memory is a stage's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from vramancer_cli.errors import IntegrityError
from vramancer_cli.scheduling.free_runs import FreeRuns

EVICTED_SHARE: Final = 8
MOST_EVICTED: Final = 16
"""One in so many kept blocks, up to so many, are forgotten together, oldest first: those of one sequence lie side by
side, and so its heir's will."""


class BlockPool:
    """`block_count` blocks of `block_tokens` tokens each, of one cache group."""

    def __init__(self, block_count: int, block_tokens: int) -> None:
        if block_count < 1 or block_tokens < 1:
            raise ValueError(f"A pool of {block_count} blocks of {block_tokens} tokens holds nothing.")
        self.block_count = block_count
        self.block_tokens = block_tokens
        self._free = FreeRuns(block_count)
        self._users: Counter[int] = Counter()
        self._kept: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}
        self._unused: dict[int, None] = {}  # kept blocks without users, the least recently used first

    @property
    def free_count(self) -> int:
        """Blocks that nobody uses, kept ones among them."""
        return self._free.count + len(self._unused)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` tokens fill or begin."""
        return -(-tokens // self.block_tokens)

    def take(self, count: int, *, after: int | None = None) -> tuple[int, ...]:
        """`count` blocks with one user each, following block `after` and consecutive where that is possible.

        Raises ValueError when fewer are free: ask `free_count` first.
        """
        if count > self.free_count:
            raise ValueError(f"{count} blocks were asked for, {self.free_count} are free.")
        if count > self._free.count:
            gulp = min(MOST_EVICTED, len(self._unused) // EVICTED_SHARE)
            self._evict(max(count - self._free.count, gulp))
        blocks = self._free.take(count, after=after)
        self._users.update(blocks)
        return blocks

    def share(self, blocks: Iterable[int]) -> None:
        """One more user each. Raises IntegrityError for a block that is neither used nor kept."""
        for block in blocks:
            if block not in self._users and block not in self._unused:
                raise IntegrityError(f"Block {block} is shared, but nobody uses it.")
            self._unused.pop(block, None)
            self._users[block] += 1

    def give_back(self, blocks: Sequence[int]) -> None:
        """One user fewer each. Of those kept, the last is forgotten first: what follows a block is no use without it.

        Raises IntegrityError, and changes nothing, for a block that is not used so often.
        """
        for block, count in Counter(blocks).items():
            if self._users[block] < count:
                raise IntegrityError(f"Block {block} was given back, but is not used.")
        self._users.subtract(blocks)
        dropped = [block for block in reversed(blocks) if not self._users[block]]
        for block in dropped:
            del self._users[block]
        self._unused.update((block, None) for block in dropped if block in self._digests)
        self._free.add(block for block in dropped if block not in self._digests)

    def keep(self, block: int, digest: bytes) -> None:
        """Remember what a used block holds, unless another one holds the same."""
        if digest not in self._kept and block not in self._digests:
            self._kept[digest] = block
            self._digests[block] = digest

    def find(self, digests: Iterable[bytes]) -> tuple[int, ...]:
        """The kept blocks of the longest known beginning of a chain of digests."""
        found: list[int] = []
        for digest in digests:
            block = self._kept.get(digest)
            if block is None:
                break
            found.append(block)
        return tuple(found)

    def holds(self, digest: bytes) -> bool:
        """Whether a block is kept under `digest`."""
        return digest in self._kept

    def unused_among(self, blocks: Iterable[int]) -> int:
        """How many of these are free to be given out until they are shared."""
        return sum(block in self._unused for block in blocks)

    def is_kept(self, block: int) -> bool:
        return block in self._digests

    def users(self, block: int) -> int:
        return self._users.get(block, 0)

    def check_integrity(self, owners: Mapping[int, Iterable[int]]) -> None:
        """`owners`: sequence id -> block table. Raises IntegrityError unless every block is free, kept, or used by
        exactly those who have it in their table."""
        expected: Counter[int] = Counter()
        for owner, blocks in owners.items():
            table = list(blocks)
            if len(set(table)) != len(table):
                raise IntegrityError(f"Sequence {owner} has a block twice.")
            expected.update(table)
        if expected != self._users:
            block = min(block for block in expected | self._users if expected[block] != self._users[block])
            raise IntegrityError(f"Block {block} has {self._users[block]} users, and is in {expected[block]} tables.")
        self._check_places()

    def _check_places(self) -> None:
        places = [*self._free, *self._unused, *self._users]
        if sorted(places) != list(range(self.block_count)):
            raise IntegrityError(
                f"{len(set(places))} of {self.block_count} blocks are free, kept or used: one is lost."
            )
        if self._kept != {digest: block for block, digest in self._digests.items()}:
            raise IntegrityError("A block is kept under another digest than its own.")
        if not self._unused.keys() <= self._digests.keys() <= self._unused.keys() | self._users.keys():
            raise IntegrityError("A block that is kept is free, or one that is not kept is held back.")

    def _evict(self, count: int) -> None:
        oldest = [block for block, _ in zip(self._unused, range(count), strict=False)]
        for block in oldest:
            del self._unused[block]
            del self._kept[self._digests.pop(block)]
        self._free.add(oldest)
