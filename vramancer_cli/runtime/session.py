"""One epoch of generation: schedule, run through the pipeline, commit, hand out.

What a request is asked and answered with is `generation`'s; which tokens run next is the scheduler's. Never torch,
sockets, the cluster's state.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

from transport.messages import Plan
from vramancer_cli.errors import VramancerError
from vramancer_cli.models.readout import NO_READING, PromptReading, RowOutput
from vramancer_cli.runtime.contracts import GenerationRequest
from vramancer_cli.runtime.pipeline import Pipeline
from vramancer_cli.runtime.rate import TokenRate
from vramancer_cli.runtime.trips import TripCount
from vramancer_cli.scheduling.scheduler import Scheduler
from vramancer_cli.scheduling.step_parts import Emitted, Scheduled, StepMismatchError

STEP_DEADLINE_S: Final = 120.0
MAX_RUNNING: Final = 64
MAX_WAITING: Final = 128
"""With those that run, fewer than the API takes connections: the next one gets a 429 and not a closed door."""
MOST_FAILURES: Final = 1
"""Of the requests that were in failing steps more often than this, the youngest is not tried again: it may be why."""

Broken = Callable[[BaseException], None]


class StepDeadlineError(VramancerError):
    """A step did not come back from the nodes in time."""


@dataclass(frozen=True, slots=True)
class Item:
    """What one step gave one choice."""

    choice: int
    output: RowOutput
    emitted: Emitted | None


@dataclass(eq=False, slots=True)
class Answers:
    """A request under way. `left`: the choices that have not ended, by sequence. `begun`: something of it was told;
    `failures`: so many steps failed that it was in.

    The outbox holds at most an item per token of prompt and answers: its request bounds it.
    """

    request_id: str
    left: dict[int, int] = field(default_factory=dict[int, int])
    begun: bool = False
    failures: int = 0
    outbox: asyncio.Queue[Item | VramancerError] = field(default_factory=lambda: asyncio.Queue[Item | VramancerError]())


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that is on its way through the stages. `alone`: it is one sequence's next token, and meets no other."""

    scheduled: Scheduled
    results: asyncio.Future[list[RowOutput]]
    deadline_s: float
    alone: bool


class Session:
    """One epoch of generation: a scheduler, a pipeline, and the task that drives them.

    Once halted it only keeps its requests, for the session that is made with it as `before`.
    """

    def __init__(
        self,
        plan: Plan,
        pipeline: Pipeline,
        on_broken: Broken,
        *,
        rate: TokenRate,
        trips: TripCount,
        prefix_cache: bool,
        draft: int | None,
        before: Session | None,
    ) -> None:
        self.scheduler = Scheduler.of_plan(
            plan, prefix_cache=prefix_cache, draft=draft, max_running=MAX_RUNNING, max_waiting=MAX_WAITING
        )
        self._pipeline = pipeline
        self._rate = rate
        self._trips = trips
        trips.start_afresh()
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._answers: dict[int, Answers] = {}  # by sequence
        self._in_flight: deque[_Flight] = deque()
        self._halting = False
        if before is not None:
            self.scheduler.inherit(before.scheduler)
            self._answers = before._answers
        self._task = asyncio.create_task(self._run(), name=f"generation-{plan.epoch}")

    def add(self, first: int, request: GenerationRequest, reading: PromptReading) -> Answers:
        """A sequence for each choice, numbered from `first`: all of them, or none and an error."""
        answers = Answers(request.request_id)
        try:
            for choice in range(request.choices):
                self._add(first + choice, choice, request, reading if choice == 0 else NO_READING)
                self._answers[first + choice] = answers
                answers.left[first + choice] = choice
        except VramancerError:
            self.abort(answers)
            raise
        self._wake.set()
        return answers

    def _add(self, sequence: int, choice: int, request: GenerationRequest, reading: PromptReading) -> None:
        sampling = replace(request.sampling, seed=request.sampling.seed + choice)
        stops = request.stop_token_ids
        limits = (request.max_tokens, stops)
        self.scheduler.add(sequence, request.prompt, sampling, *limits, reading=reading, priority=request.priority)

    def abort(self, answers: Answers) -> None:
        for sequence in tuple(answers.left):
            self._end(sequence)
            self.scheduler.abort(sequence)
            self._wake.set()

    def drop(self, request_id: str, choice: int) -> None:
        for sequence, answers in tuple(self._answers.items()):
            if answers.request_id == request_id and answers.left[sequence] == choice:
                self._end(sequence)
                self.scheduler.abort(sequence)
                self._wake.set()

    def _end(self, sequence: int) -> None:
        """Nothing more comes of it."""
        answers = self._answers.pop(sequence, None)
        if answers is not None:
            del answers.left[sequence]

    async def halt(self, landing_s: float) -> None:
        """Nothing runs any more; requests stay, with the tokens that came back. Steps under way get `landing_s`."""
        self._halting = True
        self._wake.set()
        await asyncio.wait({self._task}, timeout=landing_s)
        self._pipeline.close()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.scheduler.suspend()

    def blame(self, error: VramancerError) -> None:
        """Every request in a step under way may have made it fail. Of those that were there too often, the one whose
        steps have gone well least long ends with `error`."""
        rows = (row.sequence for flight in self._in_flight for row in flight.scheduled.step.rows)
        suspects = {self._answers[sequence]: sequence for sequence in sorted(rows) if sequence in self._answers}
        for answers in suspects:
            answers.failures += 1
        guilty = [answers for answers in suspects if answers.failures > MOST_FAILURES]
        if guilty:
            self._refuse(max(guilty, key=suspects.__getitem__), error)

    def turn_away(self, error: VramancerError) -> None:
        """Those who have nothing yet."""
        for answers in {answers for answers in self._answers.values() if not answers.begun}:
            self._refuse(answers, error)

    def _refuse(self, answers: Answers, error: VramancerError) -> None:
        answers.outbox.put_nowait(error)
        self.abort(answers)

    async def stop(self, error: VramancerError) -> None:
        """Nobody may `add` any more. Those who wait are told first, so that nothing can keep it from them."""
        for answers in set(self._answers.values()):
            answers.outbox.put_nowait(error)
            answers.left.clear()
        self._answers.clear()
        self._pipeline.close()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """The door of this task: whatever fails in it stops the session, never silently."""
        try:
            await self._drive()
        except TimeoutError:
            self._on_broken(StepDeadlineError())
        except Exception as error:
            self._on_broken(error)

    async def _drive(self) -> None:
        while True:
            self._land()
            if not self._halting:
                self._launch()
            elif not self._in_flight:
                return
            if self.scheduler.idle:
                self.scheduler.check_integrity()  # nobody waits for it now, and a new plan heals what it finds
            async with asyncio.timeout_at(self._in_flight[0].deadline_s if self._in_flight else None):
                await self._wake.wait()
            self._wake.clear()

    def _land(self) -> None:
        """Steps come back in order: every stage runs them by number."""
        while self._in_flight and self._in_flight[0].results.done():
            flight = self._in_flight.popleft()
            now = self._loop.time()
            if flight.alone:
                self._trips.took(now + STEP_DEADLINE_S - flight.deadline_s)
            with self._pipeline.recorder.of_step(flight.scheduled.step).span("commit"):
                self._commit(flight.scheduled, flight.results.result(), now)

    def _launch(self) -> None:
        """As many steps as the scheduler lets fly at once."""
        recorder = self._pipeline.recorder
        began_s = recorder.clock()
        while (scheduled := self.scheduler.schedule(now := self._loop.time())) is not None:
            results = self._pipeline.submit(scheduled)
            results.add_done_callback(lambda _: self._wake.set())
            alone = not self._in_flight and scheduled.step.token_count == 1
            self._in_flight.append(_Flight(scheduled, results, now + STEP_DEADLINE_S, alone))
            recorder.of_step(scheduled.step).note("schedule", began_s)
            began_s = recorder.clock()

    def _commit(self, scheduled: Scheduled, results: list[RowOutput], now: float) -> None:
        if len(results) != len(scheduled.readouts):
            raise StepMismatchError(f"{len(results)} results came for {len(scheduled.readouts)} readouts.")
        tokens = [token for result in results for token in result.tokens]
        emitted = {item.sequence: item for item in self.scheduler.commit(scheduled.step, tokens, now)}
        for readout, result in zip(scheduled.readouts, results, strict=True):
            self._hand_out(readout.sequence, result, emitted.get(readout.sequence), now)

    def _hand_out(self, sequence: int, output: RowOutput, emitted: Emitted | None, now: float) -> None:
        """`emitted` is None for a part of a prompt, and for what was aborted meanwhile, of which nobody hears."""
        if emitted is not None:
            self._rate.add(len(emitted.token_ids), now)
            self._trips.add(emitted)
        answers = self._answers.get(sequence)
        if answers is None:
            return
        answers.begun = True
        answers.outbox.put_nowait(Item(answers.left[sequence], output, emitted))
        if emitted is not None and emitted.finish_reason is not None:
            self._end(sequence)
