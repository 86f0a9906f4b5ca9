"""The loop that turns requests into tokens: schedule, run through the pipeline, commit, hand out.

A Generation outlives plans, and so do its requests: when a plan breaks they keep their tokens, wait, and are computed
again under the next one. While no plan has served yet, or none is to be had, requests are refused with the reason.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

from transport.messages import Plan
from vramancer_cli.errors import NotReadyError, VramancerError
from vramancer_cli.models.readout import NO_READING, PromptReading, RowOutput
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.runtime.contracts import EmbeddingRequest, Generated, GenerationRequest
from vramancer_cli.runtime.pipeline import Pipeline
from vramancer_cli.runtime.rate import TokenRate
from vramancer_cli.runtime.trips import TripCount
from vramancer_cli.scheduling.scheduler import Emitted, Scheduled, Scheduler, StepMismatchError

STEP_DEADLINE_S = 120.0
MAX_RUNNING = 16
MAX_WAITING = 128
"""With those that run, fewer than the API takes connections: the next one gets a 429 and not a closed door."""

WAIT_S = 30.0
"""For so long after a plan broke, those who have no token yet wait for the next one. Then they are refused: whoever
asks a machine that is silent for longer asks another one. Answers that have begun wait as long as they are let."""
LANDING_S = 5.0
"""What steps on their way get to come back before a plan that still works is left for another."""
MOST_FAILURES = 1
"""Of the requests that were in failing steps more often than this, the youngest is not tried again: it may be why."""

Broken = Callable[[BaseException], None]


class StepDeadlineError(VramancerError):
    """A step did not come back from the nodes in time."""


class Generation:
    """A Deployment (see contracts). All methods on the event loop."""

    def __init__(
        self,
        name: str,
        folder: Path,
        context_tokens: int,
        created_s: int,
        on_activity: Callable[[], None],
        *,
        prefix_cache: bool = True,
        draft: int | None = None,
    ) -> None:
        """`draft`: how many tokens are guessed beforehand, None: as many as pay (see scheduling)."""
        self.name = name
        self.folder = folder
        self.context_tokens = context_tokens
        self.created_s = created_s
        self.rate = TokenRate()
        self.trips = TripCount()
        self._draft = draft
        self._on_activity = on_activity
        self._prefix_cache = prefix_cache
        self._session: _Session | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._reason = "The model is not loaded yet."
        self._next_sequence = 0
        self._ended_prefix_tokens = (0, 0)

    @property
    def running(self) -> int:
        return self._session.scheduler.running if self._session else 0

    @property
    def waiting(self) -> int:
        return self._session.scheduler.waiting if self._session else 0

    @property
    def prefix_tokens(self) -> tuple[int, int]:
        """Since start: (found, asked) tokens of what sequences began with, that were computed already and at all."""
        found, asked = self._ended_prefix_tokens
        if self._session is None:
            return found, asked
        return found + self._session.scheduler.reused_tokens, asked + self._session.scheduler.asked_tokens

    def serve(self, plan: Plan, pipeline: Pipeline, on_broken: Broken) -> None:
        """Take requests with this plan from now on; those that outlived the last one go on first."""
        self._end_patience()
        self._ended_prefix_tokens = self.prefix_tokens
        self._session = _Session(
            plan, pipeline, self.rate, on_broken, self._prefix_cache, self.trips, self._draft, self._session
        )

    async def pause(self, error: VramancerError, *, broken: bool = True, to_blame: bool = False) -> None:
        """The plan ends, its requests do not: they wait for `serve`, or for `stop`. New ones wait with them for WAIT_S.

        Unless the plan is `broken`, steps on their way may come back first. `to_blame`: what was computed may be why
        it broke; a request of which that was said too often ends with `error`.
        """
        session = self._session
        if session is None:
            return
        self._reason = str(error)
        self._end_patience()
        self._patience = asyncio.get_running_loop().call_later(WAIT_S, self._lose_patience)
        if to_blame:
            session.blame(error)
        await session.halt(0.0 if broken else LANDING_S)
        self._on_activity()

    def _lose_patience(self) -> None:
        assert self._session is not None
        self._session.turn_away(NotReadyError(self._reason))
        self._on_activity()

    def _end_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _taking(self) -> _Session:
        """Where requests are to be added. Raises NotReadyError."""
        lost = self._patience is not None and self._patience.when() <= asyncio.get_running_loop().time()
        if self._session is None or lost:
            raise NotReadyError(self._reason)
        return self._session

    async def stop(self, error: VramancerError) -> None:
        """End every running and waiting request with `error`; refuse new ones with its sentence."""
        self._end_patience()
        self._ended_prefix_tokens = self.prefix_tokens
        session, self._session = self._session, None
        self._reason = str(error)
        if session is not None:
            await session.stop(error)

    def wait_for(self, reason: str) -> None:
        """The sentence that new requests are refused with while nothing serves."""
        self._reason = reason

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Generated, None]:
        async with aclosing(self._items(request, _prompt_scores(request))) as items:
            async for item in items:
                for generated in _generated(item):
                    yield generated

    def drop(self, request_id: str, choice: int) -> None:
        if self._session is not None:
            self._session.drop(request_id, choice)
            self._on_activity()

    async def embed(self, request: EmbeddingRequest) -> tuple[float, ...]:
        asked = GenerationRequest(request.request_id, request.prompt, Sampling(), max_tokens=0)
        total: tuple[float, ...] = ()
        async with aclosing(self._items(asked, PromptReading(pooling=request.pooling))) as items:
            async for item in items:
                part = item.output.pooled
                total = tuple(map(float.__add__, total, part)) if total else part
        count = len(request.prompt) if request.pooling == "mean" else 1
        return tuple(value / count for value in total)

    async def _items(self, request: GenerationRequest, reading: PromptReading) -> AsyncGenerator[_Item, None]:
        """What comes of the request's sequences, until all have ended; `reading` is for the first of them."""
        session, first = self._taking(), self._next_sequence
        self._next_sequence += request.choices
        answers = session.add(first, request, reading)
        self._on_activity()
        try:
            while answers.left or not answers.outbox.empty():
                item = await answers.outbox.get()
                if isinstance(item, VramancerError):
                    raise item
                yield item
        finally:
            if self._session is not None:  # perhaps a later one than it began in
                self._session.abort(answers)
            self._on_activity()


def _prompt_scores(request: GenerationRequest) -> PromptReading:
    return PromptReading(top_logprobs=request.prompt_logprobs)


@dataclass(frozen=True, slots=True)
class _Item:
    """What one step gave one choice."""

    choice: int
    output: RowOutput
    emitted: Emitted | None


def _generated(item: _Item) -> Iterator[Generated]:
    """Token by token, as if each had come by itself: what follows must not depend on how many came in one trip."""
    token_ids = item.emitted.token_ids if item.emitted else ()
    finish_reason = item.emitted.finish_reason if item.emitted else None
    for place in range(len(token_ids) - 1):
        yield Generated(token_ids[place : place + 1], None, item.choice, item.output.scores[place : place + 1])
    last = slice(max(0, len(token_ids) - 1), len(token_ids))
    yield Generated(token_ids[last], finish_reason, item.choice, item.output.scores[last], item.output.prompt_scores)


@dataclass(eq=False, slots=True)
class _Answers:
    """A request under way. `left`: the choices that have not ended, by sequence. `begun`: something of it was told;
    `failures`: so many steps failed that it was in.

    The outbox holds at most an item per token of prompt and answers: its request bounds it.
    """

    request_id: str
    left: dict[int, int] = field(default_factory=dict[int, int])
    begun: bool = False
    failures: int = 0
    outbox: asyncio.Queue[_Item | VramancerError] = field(
        default_factory=lambda: asyncio.Queue[_Item | VramancerError]()
    )


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that is on its way through the stages."""

    scheduled: Scheduled
    results: asyncio.Future[list[RowOutput]]
    deadline_s: float


class _Session:
    """One epoch of generation: a scheduler, a pipeline, and the task that drives them.

    Once halted it only keeps its requests, for the session that is made with it as `before`.
    """

    def __init__(
        self,
        plan: Plan,
        pipeline: Pipeline,
        rate: TokenRate,
        on_broken: Broken,
        prefix_cache: bool,
        trips: TripCount,
        draft: int | None,
        before: _Session | None,
    ) -> None:
        self.scheduler = Scheduler(
            epoch=plan.epoch,
            block_count=plan.block_count,
            block_tokens=plan.block_tokens,
            max_step_tokens=plan.max_step_tokens,
            windows=plan.windows,
            state_slots=plan.state_slots,
            prefix_cache=prefix_cache,
            draft=draft,
            max_running=MAX_RUNNING,
            max_waiting=MAX_WAITING,
            max_in_flight=len(plan.stages),
        )
        self._pipeline = pipeline
        self._rate = rate
        self._trips = trips
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._answers: dict[int, _Answers] = {}  # by sequence
        self._in_flight: deque[_Flight] = deque()
        self._halting = False
        if before is not None:
            self.scheduler.inherit(before.scheduler)
            self._answers = before._answers
        self._task = asyncio.create_task(self._run(), name=f"generation-{plan.epoch}")

    def add(self, first: int, request: GenerationRequest, reading: PromptReading) -> _Answers:
        """A sequence for each choice, numbered from `first`: all of them, or none and an error."""
        answers = _Answers(request.request_id)
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

    def abort(self, answers: _Answers) -> None:
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

    def _refuse(self, answers: _Answers, error: VramancerError) -> None:
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
            self._commit(flight.scheduled, flight.results.result(), self._loop.time())

    def _launch(self) -> None:
        """As many steps as the scheduler lets fly at once."""
        while (scheduled := self.scheduler.schedule(now := self._loop.time())) is not None:
            results = self._pipeline.submit(scheduled)
            results.add_done_callback(lambda _: self._wake.set())
            self._in_flight.append(_Flight(scheduled, results, now + STEP_DEADLINE_S))

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
        answers.outbox.put_nowait(_Item(answers.left[sequence], output, emitted))
        if emitted is not None and emitted.finish_reason is not None:
            self._end(sequence)
