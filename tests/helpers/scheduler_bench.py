"""Drives a Scheduler against mirror stages, in any interleaving, and checks every promise that it makes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tests.helpers.mirror_stage import VOCABULARY, MirrorStage, next_token
from transport.messages import Step, WindowGroup
from vramancer_cli.models.cache_window import most_held_blocks
from vramancer_cli.models.readout import NO_READING, PromptReading
from vramancer_cli.models.sampling import Draw, Sampling
from vramancer_cli.scheduling.overlap import Overlap
from vramancer_cli.scheduling.scheduler import Scheduler
from vramancer_cli.scheduling.step_parts import Scheduled

STAGES = 2


@dataclass(frozen=True)
class Limits:
    block_count: int
    block_tokens: int
    max_step_tokens: int
    max_running: int
    max_waiting: int
    overlap: Overlap
    state_slots: int = 0
    prefix_cache: bool = True
    draft: int | None = 0
    windows: tuple[WindowGroup, ...] = ()


@dataclass
class Request:
    id: int
    prompt: tuple[int, ...]
    seed: int
    max_tokens: int
    stops: frozenset[int]
    priority: int = 0
    reading: PromptReading = NO_READING
    read: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None
    steps_without_row: int = 0
    allowed_steps: int = 0

    @property
    def work(self) -> int:
        """The most rows that it can need from nothing to its end."""
        return len(self.prompt) + self.max_tokens

    def alone(self) -> tuple[list[int], str]:
        """What it must answer whatever happens around it."""
        tokens: list[int] = []
        while len(tokens) < self.max_tokens:
            token = next_token((*self.prompt, *tokens), Draw(Sampling(seed=self.seed), len(tokens)))
            if token in self.stops:
                return tokens, "stop"
            tokens.append(token)
        return tokens, "length"


@dataclass
class Flight:
    scheduled: Scheduled
    histories: list[tuple[int, ...]] = field(default_factory=list)
    stages_done: int = 0


class Bench:
    """Steps wander through the stages as `advance` is called, each stage taking them in order; `next_epoch` takes the
    stages away."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.scheduler = Scheduler(epoch=1, **limits.__dict__)
        self.stages = _stages(limits)
        self.live: dict[int, Request] = {}
        self.done: list[Request] = []
        self.in_flight: list[Flight] = []
        self.now = 0.0
        self.steps = 0
        self.epochs = 1
        self.preemptions = self.copies = self.shared = self.right = self.wrong = self.followed = 0
        self._next_id = self._actions = 0
        self._oldest: int | None = None
        self._oldest_passed_by = 0
        # At worst one decode runs in a step: all others once before the oldest, and the steps in flight around it.
        self.patience_steps = limits.max_running + limits.overlap.most_steps

    def arrive(
        self,
        prompt: tuple[int, ...],
        seed: int,
        max_tokens: int,
        stops: frozenset[int],
        priority: int = 0,
        reading: PromptReading = NO_READING,
    ) -> Request:
        request = Request(self._next_id, prompt, seed, max_tokens, stops, priority, reading)
        self.scheduler.add(request.id, prompt, Sampling(seed=seed), max_tokens, stops, reading, priority=priority)
        self._next_id += 1
        self.live[request.id] = request
        for other in self.live.values():
            if other.priority != priority:
                other.allowed_steps += self.patience_steps * request.work
        self._give_patience(request)
        self._check_integrity()
        return request

    def abort(self, request: Request) -> None:
        self.scheduler.abort(request.id)
        del self.live[request.id]
        self._check_integrity()

    def next_epoch(self) -> None:
        """Whatever is in flight is lost, and so are all caches; other stages go on with what the head knows."""
        before = self.scheduler
        before.suspend()
        before.check_integrity()
        assert (before.running, before.waiting) == (0, len(self.live))
        self.epochs += 1
        self.scheduler = Scheduler(epoch=self.epochs, **self.limits.__dict__)
        self.scheduler.inherit(before)
        self.stages = _stages(self.limits)
        self.in_flight.clear()
        for request in self.live.values():
            request.allowed_steps += self.patience_steps * sum(other.work for other in self.live.values())
        self._oldest_passed_by = 0
        self._check_integrity()

    def schedule(self) -> bool:
        self.now += 1.0
        scheduled = self.scheduler.schedule(self.now)
        self._check_integrity()
        if scheduled is None:
            return False
        assert len(self.in_flight) < self.limits.overlap.most_steps
        self._check_step(scheduled)
        self._check_patience(scheduled)
        self.in_flight.append(Flight(scheduled))
        self.steps += 1
        return True

    def advance(self, choice: int) -> bool:
        """Move one step on by one stage, or commit the oldest if it is through all; False when none is in flight."""
        movable = [index for index in range(len(self.in_flight)) if self._may_move(index)]
        if not movable:
            return False
        flight = self.in_flight[movable[choice % len(movable)]]
        if flight.stages_done == STAGES:
            self._commit()
            return True
        histories = self.stages[flight.stages_done].execute(flight.scheduled.step, flight.scheduled.token_ids)
        assert flight.stages_done == 0 or histories == flight.histories, "two stages saw different sequences"
        flight.histories = histories
        flight.stages_done += 1
        return True

    def drain(self) -> None:
        """Run until idle: everyone has ended as if alone, and nobody's block tables are left anywhere."""
        budget = 1000 + 20 * self.patience_steps * sum(request.work for request in self.live.values())
        while not self.scheduler.idle:
            assert self.schedule() | self.advance(0), "the scheduler is not idle, but nothing can be done"
            budget -= 1
            assert budget, "the scheduler goes round in circles"
        assert not self.live
        assert (self.scheduler.running, self.scheduler.waiting) == (0, 0)
        self.scheduler.check_integrity()
        assert all(len(stage.tables) == 0 for stage in self.stages)

    def _check_integrity(self) -> None:
        """Now and then: what is leaked stays leaked, and the check takes longer than a step."""
        self._actions += 1
        if self._actions % 4 == 0:
            self.scheduler.check_integrity()

    def _may_move(self, index: int) -> bool:
        done = self.in_flight[index].stages_done
        return index == 0 or (done < STAGES and self.in_flight[index - 1].stages_done > done)

    def _check_step(self, scheduled: Scheduled) -> None:
        step = scheduled.step
        assert step.token_count == len(scheduled.token_ids) <= self.limits.max_step_tokens
        assert step.rows or step.ended
        assert self.scheduler.running <= min(self.limits.max_running, self.limits.state_slots or 1000)
        wanted = [(row.sequence, row.outputs) for row in step.rows if row.outputs]
        assert wanted == [(readout.sequence, readout.outputs) for readout in scheduled.readouts]
        for readout in scheduled.readouts:
            request = self.live[readout.sequence]
            first = len(request.tokens)
            assert len(readout.draws) + first <= request.max_tokens, "more was drafted than could be used"
            assert readout.draws == tuple(
                Draw(Sampling(seed=request.seed), first + place) for place in range(len(readout.draws))
            )
        self._check_followers(step)
        self.copies += len(step.copies)
        self.shared += sum(row.start > 0 and row.first_block[0] == 0 for row in step.rows)
        self.preemptions += sum(sequence in self.live for sequence in step.ended)

    def _check_followers(self, step: Step) -> None:
        """A sequence in flight may go on with the next part of its prompt, and not before a draw is known."""
        flying = {row.sequence: row for flight in self.in_flight for row in flight.scheduled.step.rows}
        drawn = {r.sequence for flight in self.in_flight for r in flight.scheduled.readouts if r.draws}
        for row in step.rows:
            if (before := flying.get(row.sequence)) is not None:
                assert row.sequence not in drawn, "a sequence that waits for its draw was scheduled again"
                assert row.start == before.start + before.count, "the next part of a prompt does not follow the last"
                self.followed += 1

    def _give_patience(self, request: Request) -> None:
        """Rows may pass it by while older requests, one after the other, do all their work as the oldest; and while
        those of another priority do, which are either before it or may hold what it waits for."""
        live = self.live.values()
        older = sum(other.work for other in live if other.id <= request.id or other.priority != request.priority)
        request.steps_without_row, request.allowed_steps = 0, self.patience_steps * (1 + older)

    def _check_patience(self, scheduled: Scheduled) -> None:
        in_rows = {row.sequence for row in scheduled.step.rows}
        for request in self.live.values():
            if request.id in in_rows:
                self._give_patience(request)
            else:
                request.steps_without_row += 1
            assert request.steps_without_row <= request.allowed_steps, f"request {request.id} starves"
        self._check_oldest(in_rows)

    def _check_oldest(self, in_rows: set[int]) -> None:
        oldest = min(self.live, default=None)
        mixed = len({request.priority for request in self.live.values()}) > 1
        if mixed or oldest != self._oldest or oldest in in_rows:
            self._oldest, self._oldest_passed_by = oldest, 0
        else:
            self._oldest_passed_by += 1
        assert self._oldest_passed_by <= self.patience_steps, f"the oldest request, {oldest}, starves"

    def _commit(self) -> None:
        flight = self.in_flight.pop(0)
        tokens: list[int] = []
        for history, readout in zip(flight.histories, flight.scheduled.readouts, strict=True):
            if readout.sequence in self.live:
                self.live[readout.sequence].read.extend(readout.targets)
            for place, draw in enumerate(readout.draws, start=len(history) - len(readout.draws) + 1):
                tokens.append(next_token(history[:place], draw))
        emitted = self.scheduler.commit(flight.scheduled.step, tokens, self.now)
        self._check_integrity()
        assert len({item.sequence for item in emitted}) == len(emitted)
        for item in emitted:
            request = self.live[item.sequence]  # KeyError: it was aborted or has ended before
            request.tokens.extend(item.token_ids)
            self.right += item.right
            self.wrong += item.drafted - item.right
            if item.finish_reason is not None:
                assert (request.tokens, item.finish_reason) == request.alone()
                assert tuple(request.read) == (request.prompt[1:] if request.reading != NO_READING else ())
                del self.live[item.sequence]
                self.done.append(request)


def random_limits(rng: random.Random) -> Limits:
    """From a pool that holds one request only to one that holds all."""
    block_tokens = rng.choice((1, 2, 4, 8))
    max_step_tokens = rng.choice((2, 3, 8, 32))
    return Limits(
        block_count=rng.randint(40, rng.choice((50, 200))) // block_tokens,
        block_tokens=block_tokens,
        max_step_tokens=max_step_tokens,
        max_running=rng.choice((1, 4, 8, 16)),
        max_waiting=rng.choice((2, 8, 30)),
        overlap=Overlap(groups := rng.choice((1, 2, 3)), groups + rng.choice((0, 0, 1, 2)), rng.choice((0, 1, 300))),
        state_slots=rng.choice((0, 0, 0, 0, 3, 20)),
        prefix_cache=rng.random() < 0.7,
        draft=rng.choice((0, 1, 4, 16, None)),
        windows=tuple(
            window_group(rng.randint(1, 12), block_tokens, max_step_tokens, rng.randint(0, rng.choice((3, 100))))
            for _ in range(rng.choice((0, 0, 1, 1, 2)))
        ),
    )


def window_group(window_tokens: int, block_tokens: int, max_step_tokens: int, more_blocks: int) -> WindowGroup:
    """With `more_blocks` than one sequence needs at worst."""
    least = most_held_blocks(window_tokens, max_step_tokens, block_tokens)
    return WindowGroup(window_tokens, least + more_blocks)


class RandomRequests:
    """Requests of at most 36 tokens. Prompts begin alike, go on from earlier answers, and come several at once."""

    def __init__(self, bench: Bench, rng: random.Random) -> None:
        self._bench = bench
        self._rng = rng
        self._priorities = rng.choice(((0,), (0, 0, 0, 1, -1)))
        self._openings = [tuple(rng.randrange(VOCABULARY) for _ in range(9)) for _ in range(2)]

    def arrive(self) -> None:
        """Raises QueueFullError."""
        rng, prompt = self._rng, self._prompt()
        stops = frozenset(rng.sample(range(VOCABULARY), rng.choice((0, 0, 1, 3))))
        priority = rng.choice(self._priorities)
        reading = PromptReading(top_logprobs=2) if rng.random() < 0.1 else NO_READING
        for _ in range(rng.choice((1, 1, 2, 4))):
            self._bench.arrive(prompt, rng.randrange(1000), rng.randint(1, 24), stops, priority, reading)
            reading = NO_READING

    def _prompt(self) -> tuple[int, ...]:
        rng = self._rng
        if self._bench.done and rng.random() < 0.3:
            last = rng.choice(self._bench.done[-4:])
            return (*last.prompt, *last.tokens)[: rng.randint(1, 12)]
        opening = rng.choice(self._openings) if rng.random() < 0.7 else ()
        return (opening + self._words(12))[: rng.randint(1, 12)]

    def _words(self, most: int) -> tuple[int, ...]:
        return tuple(self._rng.randrange(VOCABULARY) for _ in range(self._rng.randint(1, most)))


def _stages(limits: Limits) -> list[MirrorStage]:
    return [
        MirrorStage(limits.block_count, limits.block_tokens, limits.state_slots, limits.windows) for _ in range(STAGES)
    ]
