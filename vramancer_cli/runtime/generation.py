"""The loop that turns requests into tokens: schedule, run through the pipeline, commit, hand out.

A Generation outlives plans: while none is active its requests are refused with the reason.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path

from transport.messages import Plan
from vramancer_cli.errors import NotReadyError, VramancerError
from vramancer_cli.runtime.contracts import Generated, GenerationRequest
from vramancer_cli.runtime.pipeline import Pipeline
from vramancer_cli.runtime.rate import TokenRate
from vramancer_cli.scheduling.scheduler import Emitted, Scheduled, Scheduler

STEP_DEADLINE_S = 120.0
MAX_RUNNING = 16
MAX_WAITING = 128
"""With those that run, fewer than the API takes connections: the next one gets a 429 and not a closed door."""

Broken = Callable[[BaseException], None]


class StepDeadlineError(VramancerError):
    """A step did not come back from the nodes in time."""


class Generation:
    """A Deployment (see contracts). All methods on the event loop."""

    def __init__(self, name: str, folder: Path, context_tokens: int, created_s: int, on_activity: Callable[[], None]):
        self.name = name
        self.folder = folder
        self.context_tokens = context_tokens
        self.created_s = created_s
        self.rate = TokenRate()
        self._on_activity = on_activity
        self._session: _Session | None = None
        self._reason = "The model is not loaded yet."
        self._next_sequence = 0

    @property
    def running(self) -> int:
        return self._session.scheduler.running if self._session else 0

    @property
    def waiting(self) -> int:
        return self._session.scheduler.waiting if self._session else 0

    def serve(self, plan: Plan, pipeline: Pipeline, on_broken: Broken) -> None:
        """Take requests with this plan from now on."""
        self._session = _Session(plan, pipeline, self.rate, on_broken)

    async def stop(self, error: VramancerError) -> None:
        """End every running and waiting request with `error`; refuse new ones with its sentence."""
        session, self._session = self._session, None
        self._reason = str(error)
        if session is not None:
            await session.stop(error)

    def wait_for(self, reason: str) -> None:
        """The sentence that new requests are refused with while nothing serves."""
        self._reason = reason

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Generated, None]:
        session = self._session
        if session is None:
            raise NotReadyError(self._reason)
        sequence = self._next_sequence
        self._next_sequence += 1
        outbox = session.add(sequence, request)
        self._on_activity()
        try:
            while True:
                item = await outbox.get()
                if isinstance(item, VramancerError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            session.abort(sequence)
            self._on_activity()


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that is on its way through the stages."""

    scheduled: Scheduled
    tokens: asyncio.Future[list[int]]
    deadline_s: float


class _Session:
    """One epoch of generation: a scheduler, a pipeline, and the task that drives them."""

    def __init__(self, plan: Plan, pipeline: Pipeline, rate: TokenRate, on_broken: Broken) -> None:
        self.scheduler = Scheduler(
            epoch=plan.epoch,
            block_count=plan.block_count,
            block_tokens=plan.block_tokens,
            max_step_tokens=plan.max_step_tokens,
            state_slots=plan.state_slots,
            max_running=MAX_RUNNING,
            max_waiting=MAX_WAITING,
            max_in_flight=len(plan.stages),
        )
        self._pipeline = pipeline
        self._rate = rate
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        # An outbox holds at most max_tokens items: its request bounds it.
        self._outboxes: dict[int, asyncio.Queue[Generated | VramancerError]] = {}
        self._in_flight: deque[_Flight] = deque()
        self._task = asyncio.create_task(self._run(), name=f"generation-{plan.epoch}")

    def add(self, sequence: int, request: GenerationRequest) -> asyncio.Queue[Generated | VramancerError]:
        self.scheduler.add(sequence, request.prompt, request.sampling, request.max_tokens, request.stop_token_ids)
        outbox: asyncio.Queue[Generated | VramancerError] = asyncio.Queue()
        self._outboxes[sequence] = outbox
        self._wake.set()
        return outbox

    def abort(self, sequence: int) -> None:
        if self._outboxes.pop(sequence, None) is not None:
            self.scheduler.abort(sequence)
            self._wake.set()

    async def stop(self, error: VramancerError) -> None:
        """Nobody may `add` any more. Those who wait are told first, so that nothing can keep it from them."""
        for outbox in self._outboxes.values():
            outbox.put_nowait(error)
        self._outboxes.clear()
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
            self._launch()
            async with asyncio.timeout_at(self._in_flight[0].deadline_s if self._in_flight else None):
                await self._wake.wait()
            self._wake.clear()

    def _land(self) -> None:
        """Steps come back in order: every stage runs them by number."""
        while self._in_flight and self._in_flight[0].tokens.done():
            flight = self._in_flight.popleft()
            now = self._loop.time()
            self._hand_out(self.scheduler.commit(flight.scheduled.step, flight.tokens.result(), now), now)

    def _launch(self) -> None:
        """As many steps as the scheduler lets fly at once."""
        while (scheduled := self.scheduler.schedule(now := self._loop.time())) is not None:
            tokens = self._pipeline.submit(scheduled)
            tokens.add_done_callback(lambda _: self._wake.set())
            self._in_flight.append(_Flight(scheduled, tokens, now + STEP_DEADLINE_S))

    def _hand_out(self, emitted: tuple[Emitted, ...], now: float) -> None:
        for item in emitted:
            self._rate.add(len(item.token_ids), now)
            outbox = self._outboxes.get(item.sequence)
            if outbox is not None:
                outbox.put_nowait(Generated(item.token_ids, item.finish_reason))
            if item.finish_reason is not None:
                self._outboxes.pop(item.sequence, None)
