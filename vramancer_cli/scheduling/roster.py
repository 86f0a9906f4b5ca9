"""Who waits, who runs, and who must yield: admission, growth, preemption, and every sequence's end.

Pure state; what a sequence holds of the KV cache is the allocator's business, which of the running ones has a row in
the next step the scheduler's.
"""

from __future__ import annotations

from bisect import insort

from vramancer_cli.errors import IntegrityError, QueueFullError
from vramancer_cli.scheduling.allocator import CacheAllocator
from vramancer_cli.scheduling.sequence import Sequence


class Roster:
    """Every live sequence is either waiting, without blocks, or running, with blocks for its cached tokens at least."""

    def __init__(self, allocator: CacheAllocator, *, max_running: int, max_waiting: int) -> None:
        self.running: dict[int, Sequence] = {}
        self.waiting: list[Sequence] = []  # by rank
        self._allocator = allocator
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._ended: list[int] = []
        self._stuck: Sequence | None = None

    @property
    def has_ended(self) -> bool:
        """Stages hold block tables that they must be told to drop."""
        return bool(self._ended)

    @property
    def may_admit(self) -> bool:
        """Somebody waits, and blocks are all that could be missing."""
        return bool(self.waiting) and len(self.running) < self._max_running

    def grounded(self) -> list[Sequence]:
        """The running sequences that are in no step now, in order of rank."""
        return sorted((sequence for sequence in self.running.values() if not sequence.in_flight), key=by_rank)

    def begun(self) -> list[Sequence]:
        """The running sequences whose prompt can go on, in order of rank: also behind parts that are on their way."""
        prompts = (s for s in self.running.values() if s.uncached_tokens > 1 and s.unlaunched_tokens)
        return sorted(prompts, key=by_rank)

    def find(self, sequence_id: int) -> Sequence | None:
        queued = next((sequence for sequence in self.waiting if sequence.id == sequence_id), None)
        return self.running.get(sequence_id) or queued

    def queue(self, sequence: Sequence) -> None:
        """Raises QueueFullError."""
        if len(self.waiting) >= self._max_waiting:
            raise QueueFullError(f"{len(self.waiting)} requests are waiting already.", hint="Try again in a moment.")
        insort(self.waiting, sequence, key=by_rank)

    def admit(self) -> Sequence | None:
        """The first in the queue, with blocks for all its tokens, if there is room for it."""
        if not self.may_admit:
            return None
        sequence, running = self.waiting[0], self.running.values()
        # Every running sequence will want a block soon: without one each, the newcomer would be thrown out again.
        if self._allocator.must_wait(sequence, running) or not self._allocator.begin(sequence, running, len(running)):
            return None
        self.running[sequence.id] = self.waiting.pop(0)
        return sequence

    def grow(self, sequence: Sequence, count: int) -> bool:
        """Blocks for the next `count` tokens, which must run then; False when neither the pool nor those of lower rank
        have them."""
        while not self._allocator.grow(sequence, count):
            lower = [other for other in self.grounded() if other.rank > sequence.rank]
            if not lower:
                return False
            self._preempt(lower[-1])
        return True

    def yields(self, sequence: Sequence) -> bool:
        """Whether it has to stay grounded, so that a prompt of higher rank can have its blocks."""
        return self._stuck is not None and sequence.rank > self._stuck.rank

    def make_way(self, prompt: Sequence | None) -> None:
        """For the first prompt that lacks blocks while those who hold them are in flight; None: no prompt does."""
        self._stuck = prompt

    def land(self, sequence: Sequence, count: int) -> None:
        """Its `count` tokens in flight came back from every stage."""
        sequence.land(count)
        self._allocator.keep(sequence, count)

    def remove(self, sequence: Sequence) -> None:
        """It has finished, or nobody wants it any more. Its blocks are free at once."""
        if sequence.id in self.running:
            self._release(sequence)
        else:
            self.waiting.remove(sequence)

    def suspend(self) -> None:
        """All who run wait again, as if every one of them had been preempted; no stage will be told of it."""
        for sequence in tuple(self.running.values()):
            self._preempt(sequence)
        for sequence in self.waiting:
            sequence.ground()
        self._ended.clear()

    def inherit(self, waiting: list[Sequence]) -> None:
        """Those who wait from before, by rank, ahead of all who come; more than `max_waiting`, if need be."""
        self.waiting = waiting

    def take_ended(self) -> tuple[int, ...]:
        """Sequences whose tables the stages must drop before the next rows; each is told once."""
        ended = tuple(self._ended)
        self._ended.clear()
        return ended

    def check_integrity(self) -> None:
        """Raises IntegrityError if a block is leaked, dangling or shared wrongly, or a table is too short."""
        self._allocator.check_integrity(self.running.values())
        if any(sequence.uncached_tokens < 1 for sequence in self.running.values()):
            raise IntegrityError("A running sequence has nothing to run.")
        if any(s.tables or s.cached_tokens or s.in_flight or s.state_slot >= 0 for s in self.waiting):
            raise IntegrityError("A waiting sequence holds blocks.")
        if self.waiting != sorted(self.waiting, key=by_rank):
            raise IntegrityError("The queue is out of order.")

    def _preempt(self, sequence: Sequence) -> None:
        """Back into the queue, where its rank puts it before everyone who has not run yet."""
        self._release(sequence)
        insort(self.waiting, sequence, key=by_rank)

    def _release(self, sequence: Sequence) -> None:
        del self.running[sequence.id]
        if sequence is self._stuck:
            self.make_way(None)
        if sequence.is_announced:
            self._ended.append(sequence.id)
        self._allocator.release(sequence)


def by_rank(sequence: Sequence) -> tuple[int, int]:
    return sequence.rank
