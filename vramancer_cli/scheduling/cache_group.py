"""The blocks of one cache group: what a sequence finds there, gets, grows by, and gives back as its window moves on.

Group 0 keeps every token. The layers that look back one window of tokens have a group of their own, where a sequence
holds only what its next tokens may still see. What is kept there of a prefix is of use only as far as its last window
goes: each group says behind how many blocks a sequence may begin. Pure; sequences are the allocator's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vramancer_cli.errors import IntegrityError
from vramancer_cli.models.cache_window import first_held_block, first_read_block, most_held_blocks
from vramancer_cli.scheduling.block_pool import BlockPool


@dataclass(eq=False, slots=True)
class HeldBlocks:
    """A sequence's blocks of one group, in token order: its blocks number `first` to `end` - 1.

    The stages know those before number `announced`.
    """

    blocks: list[int] = field(default_factory=list[int])
    first: int = 0
    announced: int = 0

    @property
    def end(self) -> int:
        return self.first + len(self.blocks)

    def between(self, start: int, end: int) -> tuple[int, ...]:
        return tuple(self.blocks[start - self.first : end - self.first])

    def announce(self) -> tuple[int, tuple[int, ...]]:
        """What the stages do not know yet: the number of the first one, and their ids. They know them from now on."""
        known = max(self.first, self.announced)
        self.announced = self.end
        return known, self.between(known, self.end)

    def drop_before(self, number: int) -> tuple[int, ...]:
        dropped = self.between(self.first, max(number, self.first))
        del self.blocks[: len(dropped)]
        self.first += len(dropped)
        return dropped


@dataclass(frozen=True, slots=True)
class Found:
    """What is there already of one group: shared `blocks` from number `first` on, then `partial`, a part of a block."""

    first: int = 0
    blocks: tuple[int, ...] = ()
    partial: int | None = None

    @property
    def end(self) -> int:
        return self.first + len(self.blocks)


NOTHING = Found()


class CacheGroup:
    """`block_count` blocks of `block_tokens` tokens, for layers that look back `window_tokens` (None: to the start).

    Raises ValueError for a window group that does not hold one sequence.
    """

    def __init__(
        self, block_count: int, block_tokens: int, *, window_tokens: int | None = None, max_step_tokens: int = 1
    ) -> None:
        self.pool = BlockPool(block_count, block_tokens)
        self.window_tokens = window_tokens
        self._most_held = block_count
        if window_tokens is not None:
            self._most_held = most_held_blocks(window_tokens, max_step_tokens, block_tokens)
        if self._most_held > block_count:
            raise ValueError(f"{block_count} blocks are too few for a window of {window_tokens} tokens.")

    # --- what is there already ----------------------------------------------------------------------------------

    def usable_end(self, digests: Sequence[bytes], end: int) -> int:
        """The most blocks of a chain, at most `end`, behind which a sequence can begin with what is kept of it here."""
        number = end
        while number > self._first_read(end * self.pool.block_tokens):
            number -= 1
            if not self.pool.holds(digests[number]):
                end = number
        return end

    def kept(self, digests: Sequence[bytes], end: int) -> Found:
        """For a sequence that begins behind `end` blocks of a chain, which must be usable."""
        first = self._first_read(end * self.pool.block_tokens)
        return Found(first, self.pool.find(digests[first:end]))

    def forked(self, other: HeldBlocks, tokens: int) -> Found | None:
        """For a sequence that begins behind `tokens` tokens of a running one; None if that one has left them behind."""
        full, rest = divmod(tokens, self.pool.block_tokens)
        first = self._first_read(tokens)
        if other.first > first:
            return None
        return Found(first, other.between(first, full), other.between(full, full + 1)[0] if rest else None)

    # --- what a sequence holds ----------------------------------------------------------------------------------

    def has_room(self, found: Found, tokens: int, reserve: int) -> bool:
        """For `tokens` tokens, of which `found` are there, so that `reserve` blocks stay free."""
        needed = min(self.pool.blocks_for(tokens) - found.end, self._most_held)
        return needed + reserve + self.pool.unused_among(found.blocks) <= self.pool.free_count

    def begin(self, found: Found, tokens: int) -> HeldBlocks:
        """Share what was found. Group 0 gives the blocks of all `tokens` tokens at once; a window's group those that a
        part is copied to, and the rest as the window moves on."""
        self.pool.share(found.blocks)
        copied = int(found.partial is not None)
        needed = copied if self.window_tokens is not None else self.pool.blocks_for(tokens) - found.end
        fresh = self.pool.take(needed, after=found.blocks[-1] if found.blocks else None)
        return HeldBlocks([*found.blocks, *fresh], found.first)

    def can_grow(self, held: HeldBlocks, start: int, count: int) -> bool:
        """Whether there are blocks for `count` tokens from position `start` on, with those that go back."""
        needed = self.pool.blocks_for(start + count) - held.end
        if needed <= self.pool.free_count:
            return True
        behind = held.between(held.first, max(held.first, self._first_held(start)))
        return needed <= self.pool.free_count + sum(self.pool.users(block) == 1 for block in behind)

    def grow(self, held: HeldBlocks, start: int, count: int) -> None:
        """Give back what lies behind the window of position `start`, then take what the next `count` tokens need."""
        last = held.blocks[-1] if held.blocks else None
        if dropped := held.drop_before(self._first_held(start)):
            self.pool.give_back(dropped)
        needed = self.pool.blocks_for(start + count) - held.end
        if needed > 0:
            held.blocks.extend(self.pool.take(needed, after=last))

    def check_integrity(self, held: Iterable[tuple[int, int, int, HeldBlocks]]) -> None:
        """`held`: sequence id, its cached and its launched tokens, its blocks. Raises IntegrityError unless each block
        is free, kept, or used by those who have it, what a sequence reads is there, and where it writes is its own."""
        sequences = tuple(held)
        self.pool.check_integrity({sequence: blocks.blocks for sequence, _, _, blocks in sequences})
        for sequence, cached_tokens, launched_tokens, blocks in sequences:
            self._check_table(sequence, cached_tokens, launched_tokens, blocks)

    def _check_table(self, sequence: int, cached_tokens: int, launched_tokens: int, held: HeldBlocks) -> None:
        covered = held.first <= self._first_read(launched_tokens)
        if not covered or self.pool.blocks_for(launched_tokens) > held.end:
            raise IntegrityError(f"The blocks of sequence {sequence} do not match its tokens.")
        if self.window_tokens is not None and len(held.blocks) > self._most_held:
            raise IntegrityError(f"Sequence {sequence} holds {len(held.blocks)} blocks of a window.")
        for block in held.between(max(held.first, cached_tokens // self.pool.block_tokens), held.end):
            if self.pool.users(block) != 1 or self.pool.is_kept(block):
                raise IntegrityError(f"Sequence {sequence} would write into block {block}, which others may read.")

    def _first_read(self, start: int) -> int:
        window = self.window_tokens
        return 0 if window is None else first_read_block(window, start, self.pool.block_tokens)

    def _first_held(self, start: int) -> int:
        window = self.window_tokens
        return 0 if window is None else first_held_block(window, start, self.pool.block_tokens)
