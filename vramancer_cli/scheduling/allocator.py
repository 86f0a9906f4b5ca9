"""What each sequence holds of the KV cache: blocks, of its own or shared, and a state slot.

What need not be computed again is found here, in two ways. A sequence whose first tokens were computed before shares
the blocks that are still kept of them (the prefix cache). A sequence whose very prompt is running already, as the
answers of one request are, is forked from it: it shares the full blocks too, and begins with a copy of the last,
partial one. At least one token always runs, because nothing can be sampled without, and every one whose output is
wanted. A model with recurrent state shares nothing: its state stands after the last token only.

Pure state; who is admitted and who must yield is the roster's business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from transport.messages import BlockCopy
from vramancer_cli.errors import IntegrityError
from vramancer_cli.scheduling.block_pool import BlockPool
from vramancer_cli.scheduling.digests import chained_digest
from vramancer_cli.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True)
class _Found:
    """What is there already: `tokens` tokens in the shared `blocks` and, what these do not hold, in block `partial`."""

    tokens: int = 0
    blocks: tuple[int, ...] = ()
    partial: int | None = None


class CacheAllocator:
    """The blocks and state slots of one epoch. Of the `asked_tokens` that sequences began with, `reused_tokens` were
    there already and were not computed again."""

    def __init__(self, *, block_count: int, block_tokens: int, state_slots: int = 0, prefix_cache: bool = True) -> None:
        self.asked_tokens = 0
        self.reused_tokens = 0
        self._pool = BlockPool(block_count, block_tokens)
        self._states = BlockPool(state_slots, 1) if state_slots else None
        self._prefix_cache = prefix_cache and not state_slots

    @property
    def capacity_tokens(self) -> int:
        return self._pool.block_count * self._pool.block_tokens

    def begin(self, sequence: Sequence, running: Iterable[Sequence], reserve: int) -> bool:
        """Give blocks for all its tokens, and a state slot; False, and nothing, unless `reserve` blocks stay free."""
        if self._states is not None and not self._states.free_count:
            return False
        found = self._find(sequence, running)
        needed = self._pool.blocks_for(sequence.token_count) - len(found.blocks)
        if needed + reserve + self._pool.unused_among(found.blocks) > self._pool.free_count:
            return False
        self._pool.share(found.blocks)
        fresh = self._pool.take(needed, after=found.blocks[-1] if found.blocks else None)
        copies = () if found.partial is None else (BlockCopy(0, found.partial, fresh[0]),)
        state_slot = -1 if self._states is None else self._states.take(1)[0]
        sequence.begin(found.blocks + fresh, found.tokens, copies, state_slot)
        self.asked_tokens += sequence.token_count
        self.reused_tokens += found.tokens
        return True

    def must_wait(self, sequence: Sequence, running: Iterable[Sequence]) -> bool:
        """Whether its prompt is just being computed by another one, so that it can be forked soon."""
        last = len(sequence.prompt) - 1
        if self._states is not None or sequence.reusable_tokens < last:
            return False
        return any(other.prompt_digest == sequence.prompt_digest and other.cached_tokens < last for other in running)

    def grow(self, sequence: Sequence) -> bool:
        """A block for the next token, if it begins one; False when none is free."""
        needed = self._pool.blocks_for(sequence.cached_tokens + 1) - len(sequence.blocks)
        if needed > self._pool.free_count:
            return False
        sequence.blocks.extend(self._pool.take(needed, after=sequence.blocks[-1]))
        return True

    def keep(self, sequence: Sequence, count: int) -> None:
        """Its last `count` tokens came back from every stage: the blocks that they fill may be shared from now on."""
        if not self._prefix_cache:
            return
        full = sequence.cached_tokens // self._pool.block_tokens
        digests = self._digests(sequence, full)
        for index in range((sequence.cached_tokens - count) // self._pool.block_tokens, full):
            self._pool.keep(sequence.blocks[index], digests[index])

    def release(self, sequence: Sequence) -> None:
        """Take back what it holds."""
        if self._states is not None:
            self._states.give_back((sequence.state_slot,))
        self._pool.give_back(sequence.drop_cache())

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Raises IntegrityError unless every block and slot is free, kept, or used by those who have it, and the block
        that a sequence writes to next is its own."""
        running = tuple(running)
        self._pool.check_integrity({sequence.id: sequence.blocks for sequence in running})
        if self._states is not None:
            self._states.check_integrity({sequence.id: (sequence.state_slot,) for sequence in running})
        for sequence in running:
            self._check_writable(sequence)

    def _check_writable(self, sequence: Sequence) -> None:
        if self._pool.blocks_for(sequence.cached_tokens) > len(sequence.blocks):
            raise IntegrityError(f"The blocks of sequence {sequence.id} do not match its tokens.")
        for block in sequence.blocks[sequence.cached_tokens // self._pool.block_tokens :]:
            if self._pool.users(block) != 1 or self._pool.is_kept(block):
                raise IntegrityError(f"Sequence {sequence.id} would write into block {block}, which others may read.")

    def _find(self, sequence: Sequence, running: Iterable[Sequence]) -> _Found:
        most = sequence.reusable_tokens
        if self._states is not None or not most:
            return _Found()
        found = self._find_kept(sequence, most)
        for other in running:
            if other.prompt_digest == sequence.prompt_digest:
                tokens = min(most, len(sequence.prompt), other.cached_tokens)
                found = max(found, self._fork(other, tokens), key=lambda part: part.tokens)
        return found

    def _find_kept(self, sequence: Sequence, most_tokens: int) -> _Found:
        if not self._prefix_cache:
            return _Found()
        blocks = self._pool.find(self._digests(sequence, most_tokens // self._pool.block_tokens))
        return _Found(len(blocks) * self._pool.block_tokens, blocks)

    def _fork(self, other: Sequence, tokens: int) -> _Found:
        full, rest = divmod(tokens, self._pool.block_tokens)
        return _Found(tokens, tuple(other.blocks[:full]), other.blocks[full] if rest else None)

    def _digests(self, sequence: Sequence, count: int) -> list[bytes]:
        """Of the first `count` blocks; each is computed once in a sequence's life."""
        digests, size = sequence.digests, self._pool.block_tokens
        while len(digests) < count:
            start = len(digests) * size
            digests.append(chained_digest(digests[-1] if digests else b"", sequence.tokens(start, start + size)))
        return digests[:count]
