"""What each sequence holds of the KV cache: blocks of every cache group, of its own or shared, and a state slot.

What need not be computed again is found here, in two ways. A sequence whose first tokens were computed before shares
the blocks that are still kept of them (the prefix cache): as many as are usable in every group, which in a window's
group asks only for the last window. A sequence whose very prompt is running already, as the
answers of one request are, is forked from it: it shares the full blocks too, and begins with a copy of the last,
partial one. At least one token always runs, because nothing can be sampled without, and every one whose output is
wanted. A model with recurrent state shares nothing: its state stands after the last token only.

Pure state; who is admitted and who must yield is the roster's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from transport.messages import BlockCopy, WindowGroup
from vramancer_cli.scheduling.block_pool import BlockPool
from vramancer_cli.scheduling.cache_group import NOTHING, CacheGroup, Found
from vramancer_cli.scheduling.digests import chained_digest
from vramancer_cli.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True)
class _Beginning:
    """What is there already: `tokens` tokens, in what was found in each group."""

    tokens: int
    parts: tuple[Found, ...]


class CacheAllocator:
    """The blocks and state slots of one epoch. Of the `asked_tokens` that sequences began with, `reused_tokens` were
    there already and were not computed again."""

    def __init__(
        self,
        *,
        block_count: int,
        block_tokens: int,
        windows: tuple[WindowGroup, ...] = (),
        max_step_tokens: int = 1,
        state_slots: int = 0,
        prefix_cache: bool = True,
    ) -> None:
        self.asked_tokens = 0
        self.reused_tokens = 0
        self._block_tokens = block_tokens
        self._groups = (
            CacheGroup(block_count, block_tokens),
            *(
                CacheGroup(
                    window.block_count,
                    block_tokens,
                    window_tokens=window.window_tokens,
                    max_step_tokens=max_step_tokens,
                )
                for window in windows
            ),
        )
        self._states = BlockPool(state_slots, 1) if state_slots else None
        self._prefix_cache = prefix_cache and not state_slots

    @property
    def capacity_tokens(self) -> int:
        return self._groups[0].pool.block_count * self._block_tokens

    def begin(self, sequence: Sequence, running: Iterable[Sequence], reserve: int) -> bool:
        """Give blocks for its tokens, and a state slot; False, and nothing, unless `reserve` blocks stay free."""
        if self._states is not None and not self._states.free_count:
            return False
        found, tokens = self._find(sequence, running), sequence.token_count
        pairs = tuple(zip(self._groups, found.parts, strict=True))
        if not all(group.has_room(part, tokens, reserve) for group, part in pairs):
            return False
        tables = [group.begin(part, tokens) for group, part in pairs]
        copies = tuple(
            BlockCopy(number, part.partial, table.blocks[len(part.blocks)])
            for number, (part, table) in enumerate(zip(found.parts, tables, strict=True))
            if part.partial is not None
        )
        state_slot = -1 if self._states is None else self._states.take(1)[0]
        sequence.begin(tables, found.tokens, copies, state_slot)
        self.asked_tokens += sequence.token_count
        self.reused_tokens += found.tokens
        return True

    def must_wait(self, sequence: Sequence, running: Iterable[Sequence]) -> bool:
        """Whether its prompt is just being computed by another one, so that it can be forked soon."""
        last = len(sequence.prompt) - 1
        if self._states is not None or sequence.reusable_tokens < last:
            return False
        return any(other.prompt_digest == sequence.prompt_digest and other.cached_tokens < last for other in running)

    def room(self, sequence: Sequence, reserve: int) -> int:
        """How many tokens more its blocks hold, with those that are free while `reserve` of each group stay so."""
        pairs = zip(self._groups, sequence.tables, strict=True)
        end = min(held.end + max(0, group.pool.free_count - reserve) for group, held in pairs)
        return end * self._block_tokens - sequence.launched_tokens

    def grow(self, sequence: Sequence, count: int) -> bool:
        """Blocks for its next `count` tokens, which must run in the next step: what their windows have left behind goes
        back. False, and nothing, when too few are free."""
        pairs = tuple(zip(self._groups, sequence.tables, strict=True))
        start = sequence.launched_tokens
        if not all(group.can_grow(held, start, count) for group, held in pairs):
            return False
        for group, held in pairs:
            group.grow(held, start, count)
        return True

    def keep(self, sequence: Sequence, count: int) -> None:
        """Its last `count` tokens came back from every stage: the blocks that they fill may be shared from now on."""
        if not self._prefix_cache:
            return
        full = sequence.cached_tokens // self._block_tokens
        digests = self._digests(sequence, full)
        for number in range((sequence.cached_tokens - count) // self._block_tokens, full):
            for group, held in zip(self._groups, sequence.tables, strict=True):
                if number >= held.first:  # else a later row on its way has left it behind already
                    group.pool.keep(held.blocks[number - held.first], digests[number])

    def release(self, sequence: Sequence) -> None:
        """Take back what it holds."""
        if self._states is not None:
            self._states.give_back((sequence.state_slot,))
        for group, held in zip(self._groups, sequence.drop_cache(), strict=True):
            group.pool.give_back(held.blocks)

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Raises IntegrityError unless every block and slot is free, kept, or used by those who have it, and the block
        that a sequence writes to next is its own."""
        running = tuple(running)
        for number, group in enumerate(self._groups):
            group.check_integrity((s.id, s.cached_tokens, s.launched_tokens, s.tables[number]) for s in running)
        if self._states is not None:
            self._states.check_integrity({sequence.id: (sequence.state_slot,) for sequence in running})

    def _find(self, sequence: Sequence, running: Iterable[Sequence]) -> _Beginning:
        most = sequence.reusable_tokens
        nothing = _Beginning(0, (NOTHING,) * len(self._groups))
        if self._states is not None or not most:
            return nothing
        found = self._find_kept(sequence, most) if self._prefix_cache else nothing
        for other in running:
            if other.prompt_digest == sequence.prompt_digest:
                tokens = min(most, len(sequence.prompt), other.cached_tokens)
                found = max(found, self._fork(other, tokens) or nothing, key=lambda part: part.tokens)
        return found

    def _find_kept(self, sequence: Sequence, most_tokens: int) -> _Beginning:
        """The longest beginning that every group can do with: what is too long for one is too long for all."""
        end, last = most_tokens // self._block_tokens, -1
        digests = self._digests(sequence, end)
        while end != last:
            last = end
            for group in self._groups:
                end = group.usable_end(digests, end)
        return _Beginning(end * self._block_tokens, tuple(group.kept(digests, end) for group in self._groups))

    def _fork(self, other: Sequence, tokens: int) -> _Beginning | None:
        parts = [group.forked(held, tokens) for group, held in zip(self._groups, other.tables, strict=True)]
        found = tuple(part for part in parts if part is not None)
        return _Beginning(tokens, found) if len(found) == len(parts) else None

    def _digests(self, sequence: Sequence, count: int) -> list[bytes]:
        """Of the first `count` blocks; each is computed once in a sequence's life."""
        digests, size = sequence.digests, self._block_tokens
        while len(digests) < count:
            start = len(digests) * size
            digests.append(chained_digest(digests[-1] if digests else b"", sequence.tokens(start, start + size)))
        return digests[:count]
