"""Who waits, who runs, and who owns which blocks: admission, growth, preemption, and every sequence's end.

Pure state; which of the running sequences has a row in the next step is the scheduler's business.
"""

from __future__ import annotations

from bisect import insort

from vramancer_cli.errors import QueueFullError
from vramancer_cli.scheduling.block_pool import BlockPool, IntegrityError
from vramancer_cli.scheduling.sequence import Sequence


class Roster:
    """Every live sequence is either waiting, without blocks, or running, with blocks for its cached tokens at least."""

    def __init__(
        self, *, block_count: int, block_tokens: int, state_slots: int = 0, max_running: int, max_waiting: int
    ) -> None:
        self.running: dict[int, Sequence] = {}
        self.waiting: list[Sequence] = []  # by arrival
        self._pool = BlockPool(block_count, block_tokens)
        self._slots = BlockPool(state_slots, 1) if state_slots else None
        self._max_running = min(max_running, state_slots) if state_slots else max_running
        self._max_waiting = max_waiting
        self._ended: list[int] = []

    @property
    def capacity_tokens(self) -> int:
        return self._pool.block_count * self._pool.block_tokens

    @property
    def has_ended(self) -> bool:
        """Stages hold block tables that they must be told to drop."""
        return bool(self._ended)

    @property
    def may_admit(self) -> bool:
        """Somebody waits, and blocks are all that could be missing."""
        return bool(self.waiting) and len(self.running) < self._max_running

    def grounded(self) -> list[Sequence]:
        """The running sequences that are in no step now, oldest first."""
        return sorted((sequence for sequence in self.running.values() if not sequence.in_flight), key=by_arrival)

    def find(self, sequence_id: int) -> Sequence | None:
        queued = next((sequence for sequence in self.waiting if sequence.id == sequence_id), None)
        return self.running.get(sequence_id) or queued

    def queue(self, sequence: Sequence) -> None:
        """Raises QueueFullError."""
        if len(self.waiting) >= self._max_waiting:
            raise QueueFullError(f"{len(self.waiting)} requests are waiting already.", hint="Try again in a moment.")
        self.waiting.append(sequence)

    def admit(self) -> Sequence | None:
        """The first in the queue, with blocks for all its tokens, if there is room for it."""
        if not self.may_admit:
            return None
        needed = self._pool.blocks_for(self.waiting[0].token_count)
        # Every running sequence will want a block soon: without one each, the newcomer would be thrown out again.
        if needed + len(self.running) > self._pool.free_count:
            return None
        sequence = self.waiting.pop(0)
        sequence.blocks.extend(self._pool.take(needed))
        if self._slots is not None:
            (sequence.state_slot,) = self._slots.take(1)
        self.running[sequence.id] = sequence
        return sequence

    def grow(self, sequence: Sequence) -> bool:
        """A block for the next token, if it begins one; False when neither the pool nor a younger sequence has it."""
        needed = self._pool.blocks_for(sequence.cached_tokens + 1) - len(sequence.blocks)
        while needed > self._pool.free_count:
            younger = [other for other in self.grounded() if other.arrival > sequence.arrival]
            if not younger:
                return False
            self._preempt(younger[-1])
        sequence.blocks.extend(self._pool.take(needed, after=sequence.blocks[-1]))
        return True

    def remove(self, sequence: Sequence) -> None:
        """It has finished, or nobody wants it any more. Its blocks are free at once."""
        if sequence.id in self.running:
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def take_ended(self) -> tuple[int, ...]:
        """Sequences whose tables the stages must drop before the next rows; each is told once."""
        ended = tuple(self._ended)
        self._ended.clear()
        return ended

    def check_integrity(self) -> None:
        """Raises IntegrityError if a block is leaked, dangling or doubly owned, or a table does not hold its tokens."""
        self._pool.check_integrity({sequence.id: sequence.blocks for sequence in self.running.values()})
        if self._slots is not None:
            self._slots.check_integrity({sequence.id: (sequence.state_slot,) for sequence in self.running.values()})
        for sequence in self.running.values():
            if self._pool.blocks_for(sequence.cached_tokens) > len(sequence.blocks) or sequence.uncached_tokens < 1:
                raise IntegrityError(f"The blocks of sequence {sequence.id} do not match its tokens.")
        if any(s.blocks or s.cached_tokens or s.in_flight or s.state_slot >= 0 for s in self.waiting):
            raise IntegrityError("A waiting sequence holds blocks.")
        if self.waiting != sorted(self.waiting, key=by_arrival):
            raise IntegrityError("The queue is out of order.")

    def _preempt(self, sequence: Sequence) -> None:
        """Back into the queue, where its early arrival puts it before everyone who has not run yet."""
        self._release(sequence)
        insort(self.waiting, sequence, key=by_arrival)

    def _release(self, sequence: Sequence) -> None:
        del self.running[sequence.id]
        if sequence.announced_blocks:
            self._ended.append(sequence.id)
        if self._slots is not None:
            self._slots.give_back((sequence.state_slot,))
        self._pool.give_back(sequence.drop_cache())


def by_arrival(sequence: Sequence) -> int:
    """Sorts the oldest first."""
    return sequence.arrival
