"""Continuous batching: which tokens of which sequences run in the next step, and what a step's results mean.

Pure: `now` comes in, frozen values go out; never sockets, threads, clocks, loggers or torch.

The order of service, in each step:
1. Decodes (sequences one token short of a sample), each in its turn, in as many groups as the pipeline has stages, so
   that all of them have work (see `overlap`). While a prompt waits they leave it a share of the budget.
2. Prompts begun, by rank, in chunks of what is left of the budget: the next chunk may follow before the last is back.
3. New sequences, strictly by rank, while blocks for all their tokens are free (in a window's cache group, for as many
   as it ever holds), and a state slot where the model keeps recurrent state.
4. Guesses at what follows the decodes (see `drafting`), out of what is left of the budget and of the free blocks.

A higher priority ranks first, within one the older. A sequence that finds no free block takes those of the lowest in
rank below itself; that one keeps its tokens and is computed again later. A prompt whose blocks are with decodes in
flight has these stay grounded when they come back. The first in rank can therefore always run, and so each one in its
turn.
"""

from __future__ import annotations

from collections import Counter, abc, deque
from dataclasses import replace
from itertools import islice
from typing import Final

from transport.messages import Plan, Step, WindowGroup
from vramancer_cli.errors import IntegrityError, InvalidRequestError
from vramancer_cli.models.readout import NO_READING, PromptReading
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.scheduling.allocator import CacheAllocator
from vramancer_cli.scheduling.drafting import Drafting, Load
from vramancer_cli.scheduling.overlap import Overlap
from vramancer_cli.scheduling.roster import Roster
from vramancer_cli.scheduling.sequence import Sequence
from vramancer_cli.scheduling.step_parts import Emitted, Flight, Scheduled, Share, StepMismatchError

ONE_AT_A_TIME: Final = Overlap()
PREFILL_SHARE = 4
"""One in so many tokens of a step's budget is kept from decodes while a prompt waits."""


class Scheduler:
    """The sequences of one epoch. `max_step_tokens` is at least 2, so that a decode and a prompt can share a step.

    `overlap`: how many steps fly at once, and how work is cut for it. `windows`: the cache groups of layers that look
    back a window only; each must hold one sequence at least. `state_slots`: recurrent states that the stages have
    places for; 0 for a model that keeps none. `prefix_cache`: whether blocks are kept after their sequence, for others
    that begin alike. `draft`: how many tokens are guessed beforehand, 0 for none, None for as many as pay; none with
    state slots, because a state cannot be taken back.
    """

    def __init__(
        self,
        *,
        epoch: int,
        block_count: int,
        block_tokens: int,
        max_step_tokens: int,
        windows: tuple[WindowGroup, ...] = (),
        state_slots: int = 0,
        prefix_cache: bool = True,
        draft: int | None = 0,
        max_running: int = 16,
        max_waiting: int = 256,
        overlap: Overlap = ONE_AT_A_TIME,
    ) -> None:
        if max_step_tokens < 2 or min(max_running, max_waiting, overlap.groups, overlap.most_steps) < 1:
            raise ValueError("max_step_tokens must be at least 2, every other limit at least 1.")
        self._epoch = epoch
        self._max_step_tokens = max_step_tokens
        self._overlap = overlap
        self._allocator = CacheAllocator(
            block_count=block_count,
            block_tokens=block_tokens,
            windows=windows,
            max_step_tokens=max_step_tokens,
            state_slots=state_slots,
            prefix_cache=prefix_cache,
        )
        most = min(max_running, state_slots or max_running)
        self._roster = Roster(self._allocator, max_running=most, max_waiting=max_waiting)
        self._drafting = None if draft == 0 or state_slots else Drafting(draft)
        self._in_flight: dict[int, Flight] = {}
        self._committed_s = 0.0
        self._next_number = 0
        self._next_arrival = 0
        self._next_turn = 0
        self._last_step_s = 0.0

    @classmethod
    def of_plan(
        cls, plan: Plan, *, prefix_cache: bool, draft: int | None, max_running: int, max_waiting: int = 256
    ) -> Scheduler:
        """For the stages of `plan`, all of which are to be kept at work."""
        return cls(
            epoch=plan.epoch,
            block_count=plan.block_count,
            block_tokens=plan.block_tokens,
            max_step_tokens=plan.max_step_tokens,
            windows=plan.windows,
            state_slots=plan.state_slots,
            prefix_cache=prefix_cache,
            draft=draft,
            max_running=max_running,
            max_waiting=max_waiting,
            overlap=Overlap.of_plan(plan),
        )

    @property
    def running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._roster.running)

    @property
    def waiting(self) -> int:
        """Sequences that hold none, preempted ones among them."""
        return len(self._roster.waiting)

    @property
    def running_tokens(self) -> int:
        """Of the sequences that hold blocks: so many would have to be computed again on other stages."""
        return sum(sequence.cached_tokens for sequence in self._roster.running.values())

    @property
    def idle(self) -> bool:
        """Nothing to run, nothing in flight, and the stages know of every end."""
        return not (self.running or self.waiting or self._in_flight or self._roster.has_ended)

    @property
    def reused_tokens(self) -> int:
        """Tokens of prompts and of preempted sequences that were found in the KV cache and not computed again."""
        return self._allocator.reused_tokens

    @property
    def asked_tokens(self) -> int:
        """Tokens that sequences began with, those among them."""
        return self._allocator.asked_tokens

    @property
    def last_step_s(self) -> float:
        """From schedule to commit, of the step that was committed last; 0 before the first."""
        return self._last_step_s

    def add(
        self,
        sequence_id: int,
        prompt: tuple[int, ...],
        sampling: Sampling,
        max_tokens: int,
        stop_token_ids: frozenset[int],
        reading: PromptReading = NO_READING,
        *,
        priority: int = 0,
    ) -> None:
        """Queue a request; one with a `reading` may have max_tokens 0. A higher `priority` goes before a lower one.

        Sequences with one prompt, added together, compute it once: so the answers of one request are forked.
        Raises InvalidRequestError, QueueFullError; ValueError for an id that is in use.
        """
        if self._roster.find(sequence_id) is not None:
            raise ValueError(f"Sequence {sequence_id} is here already.")
        self._check_size(prompt, max_tokens, least=1 if reading == NO_READING else 0)
        arrival = self._next_arrival
        sequence = Sequence(sequence_id, prompt, sampling, max_tokens, stop_token_ids, arrival, reading, priority)
        self._roster.queue(sequence)
        self._next_arrival += 1

    def abort(self, sequence_id: int) -> None:
        """Drop a sequence, also one that is in flight; an unknown id is ignored.

        Its blocks are free at once. A step in flight may still write to them, on any stage, at any time from now on;
        but every stage executes steps in order of their numbers, so those writes come before the step that gives the
        blocks to someone else, and a sequence reads no slot that it has not written itself.
        """
        sequence = self._roster.find(sequence_id)
        if sequence is not None:
            self._roster.remove(sequence)

    def suspend(self) -> None:
        """The stages are gone: nothing in flight comes back, and whoever ran waits, to be computed again from its
        tokens. Requests may still come and go; only `inherit` of a next epoch's scheduler takes them further."""
        self._in_flight.clear()
        self._roster.suspend()

    def inherit(self, before: Scheduler) -> None:
        """Take over, before anything else, all who wait in the suspended scheduler of an older epoch."""
        self._next_arrival = before._next_arrival
        self._roster.inherit(before._roster.waiting)

    def schedule(self, now: float) -> Scheduled | None:
        """The next step, or None while there is nothing to start.

        Ends ride on the next step that has rows. When there is none to come, that is when nothing is in flight either,
        they go out in a step without rows, so that an idle pipeline holds no block tables.
        """
        if len(self._in_flight) >= self._overlap.most_steps:
            return None
        shares = self._pick_decodes()
        shares += self._pick_prompts(self._max_step_tokens - len(shares))
        if self._drafting is not None:
            shares = self._with_drafts(shares, self._drafting)
        if not shares and (self._in_flight or not self._roster.has_ended):
            return None
        return self._launch(tuple(shares), now)

    def commit(self, step: Step, tokens: abc.Sequence[int], now: float) -> tuple[Emitted, ...]:
        """Take a step's sampled tokens, one per draw, in row order; those of aborted sequences, and those behind a
        draft that was wrong, are dropped.

        Raises StepMismatchError for a step that is not in flight, and for a wrong number of tokens.
        """
        flight = self._in_flight.get(step.number)
        if flight is None or flight.step != step:
            raise StepMismatchError(f"Step {step.number} of epoch {step.epoch} is not in flight.")
        draws = sum(share.draws for share in flight.shares)
        if len(tokens) != draws:
            raise StepMismatchError(f"Step {step.number} draws {draws} tokens, {len(tokens)} came.")
        del self._in_flight[step.number]
        self._last_step_s = now - flight.started_s
        self._learn_cost(flight, now)
        results = iter(tokens)
        emitted = [self._land(share, tuple(islice(results, share.draws))) for share in flight.shares]
        return tuple(item for item in emitted if item is not None)

    def check_integrity(self) -> None:
        """Raises IntegrityError if block tables, tokens and steps in flight contradict each other."""
        self._roster.check_integrity()
        flying = Counter(share.sequence for flight in self._in_flight.values() for share in flight.shares)
        if any(sequence.in_flight != flying[sequence] for sequence in self._roster.running.values()):
            raise IntegrityError("A sequence is in flight without a step, or in a step without knowing.")

    def _pick_decodes(self) -> list[Share]:
        grounded = self._roster.grounded()
        ready = [
            sequence for sequence in grounded if sequence.uncached_tokens == 1 and not self._roster.yields(sequence)
        ]
        decoding = sum(sequence.uncached_tokens == 1 for sequence in self._roster.running.values())
        flying = sum(flight.has_decodes for flight in self._in_flight.values())
        limit = min(self._overlap.decodes(decoding, len(ready), flying), self._decode_budget())
        picked: list[Share] = []
        for sequence in sorted(ready, key=lambda sequence: sequence.last_turn):
            if len(picked) == limit:
                break
            # One that came earlier in this loop may just have taken this one's blocks.
            if sequence.id in self._roster.running and self._roster.grow(sequence, 1):
                picked.append(self._pick(sequence, 1))
        return picked

    def _pick_prompts(self, budget: int) -> list[Share]:
        picked: list[Share] = []
        begun = deque(self._roster.begun())
        budget = min(budget, self._chunk(begun))
        while budget and (sequence := begun.popleft() if begun else self._roster.admit()):
            if sequence.id not in self._roster.running:
                continue  # one before it took its blocks
            count = min(sequence.unlaunched_tokens, budget)
            if not self._roster.grow(sequence, count):
                self._roster.make_way(sequence)
                return picked
            picked.append(self._pick(sequence, count))
            budget -= count
        self._roster.make_way(None)
        return picked

    def _pick(self, sequence: Sequence, count: int) -> Share:
        sequence.pick(self._next_turn)
        self._next_turn += 1
        last = count == sequence.unlaunched_tokens
        return Share(sequence, count, sampled=last and sequence.max_tokens > 0)

    def _with_drafts(self, shares: list[Share], drafting: Drafting) -> list[Share]:
        load = Load(sum(share.count for share in shares), sum(share.sampled for share in shares))
        return [self._drafted(share, drafting, load) if share.goes_on else share for share in shares]

    def _drafted(self, share: Share, drafting: Drafting, load: Load) -> Share:
        """A decode with guesses behind it, as many as fit beside all else that the step and the pool have to hold."""
        sequence = share.sequence
        wanted = sequence.max_tokens - len(sequence.generated) - 1
        free = self._allocator.room(sequence, reserve=self.running) - 1
        room = min(wanted, free, self._max_step_tokens - load.tokens)
        sequence.draft = drafting.draft(sequence, room, load)
        drafted = len(sequence.draft)
        self._allocator.grow(sequence, 1 + drafted)
        return replace(share, count=1 + drafted, drafted=drafted)

    def _learn_cost(self, flight: Flight, now: float) -> None:
        """From a step of decodes alone: how long it kept the pipeline from bringing the next result."""
        if self._drafting is not None and flight.shares and all(share.decodes for share in flight.shares):
            self._drafting.cost.note(flight.step.token_count, now - max(flight.started_s, self._committed_s))
        self._committed_s = now

    def _decode_budget(self) -> int:
        some_wait = self._roster.begun() or self._roster.may_admit
        return self._max_step_tokens - (max(1, self._max_step_tokens // PREFILL_SHARE) if some_wait else 0)

    def _chunk(self, begun: abc.Iterable[Sequence]) -> int:
        """How much of all prompts that wait the next step should take."""
        waiting = self._roster.waiting if self._roster.may_admit else ()
        return self._overlap.chunk(sum(s.unlaunched_tokens for s in begun) + sum(s.token_count for s in waiting))

    def _launch(self, shares: tuple[Share, ...], now: float) -> Scheduled:
        number = self._next_number
        self._next_number += 1
        token_ids = tuple(token for share in shares for token in share.sequence.next_tokens(share.count))
        readouts = [share.sequence.next_readout(share.count) for share in shares]
        copies = tuple(copy for share in shares for copy in share.sequence.copies)
        rows = tuple(share.sequence.launch(share.count) for share in shares)
        step = Step(epoch=self._epoch, number=number, rows=rows, ended=self._roster.take_ended(), copies=copies)
        self._in_flight[number] = Flight(step, shares, now)
        return Scheduled(step, token_ids, tuple(readout for readout in readouts if readout))

    def _land(self, share: Share, drawn: tuple[int, ...]) -> Emitted | None:
        sequence = share.sequence
        if self._roster.running.get(sequence.id) is not sequence:
            return None  # aborted while in flight
        before, right = len(sequence.generated), sequence.verified(drawn)
        finish_reason = sequence.accept_all(drawn[: right + 1])
        # Not more than is known: of a draft that was right, the tokens behind a stop token are nobody's.
        self._roster.land(sequence, min(share.count - share.drafted + right, sequence.uncached_tokens))
        if not drawn:
            if sequence.uncached_tokens:
                return None
            finish_reason = "length"  # its prompt was read, and that was all
        if finish_reason is not None:
            self._roster.remove(sequence)
        return Emitted(sequence.id, tuple(sequence.generated[before:]), finish_reason, share.drafted, right)

    def _check_size(self, prompt: tuple[int, ...], max_tokens: int, *, least: int) -> None:
        if not prompt:
            raise InvalidRequestError("The prompt is empty.", param="prompt")
        if max_tokens < least:
            raise InvalidRequestError(f"max_tokens must be at least {least}.", param="max_tokens")
        if len(prompt) + max_tokens > self._allocator.capacity_tokens:
            raise InvalidRequestError(
                f"The prompt ({len(prompt)} tokens) and max_tokens ({max_tokens}) need more than the"
                f" {self._allocator.capacity_tokens} tokens that the KV cache holds.",
                param="max_tokens",
                code="context_length_exceeded",
            )
