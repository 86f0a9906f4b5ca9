"""The model that serves, as requests see it: they come, wait, are answered, end.

A Generation outlives plans, and so do its requests: when a plan breaks they keep their tokens, wait, and are computed
again under the next one, in another `session`. While no plan has served yet, or none is to be had, requests are refused
with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Final

from transport.messages import Plan
from vramancer_cli.errors import NotReadyError, VramancerError
from vramancer_cli.models.readout import PromptReading
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.runtime.contracts import EmbeddingRequest, Generated, GenerationRequest
from vramancer_cli.runtime.pipeline import Pipeline
from vramancer_cli.runtime.rate import TokenRate
from vramancer_cli.runtime.session import Broken, Item, Session
from vramancer_cli.runtime.trips import TripCount

WAIT_S: Final = 30.0
"""For so long after a plan broke, those who have no token yet wait for the next one. Then they are refused: whoever
asks a machine that is silent for longer asks another one. Answers that have begun wait as long as they are let."""
LANDING_S: Final = 5.0
"""What steps on their way get to come back before a plan that still works is left for another."""


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
        self._session: Session | None = None
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
    def running_tokens(self) -> int:
        """Of all sequences that run: what a move of layers has computed again."""
        return self._session.scheduler.running_tokens if self._session else 0

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
        self._session = Session(
            plan,
            pipeline,
            on_broken,
            rate=self.rate,
            trips=self.trips,
            prefix_cache=self._prefix_cache,
            draft=self._draft,
            before=self._session,
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

    def _taking(self) -> Session:
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

    async def _items(self, request: GenerationRequest, reading: PromptReading) -> AsyncGenerator[Item, None]:
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


def _generated(item: Item) -> Iterator[Generated]:
    """Token by token, as if each had come by itself: what follows must not depend on how many came in one trip."""
    token_ids = item.emitted.token_ids if item.emitted else ()
    finish_reason = item.emitted.finish_reason if item.emitted else None
    for place in range(len(token_ids) - 1):
        yield Generated(token_ids[place : place + 1], None, item.choice, item.output.scores[place : place + 1])
    last = slice(max(0, len(token_ids) - 1), len(token_ids))
    yield Generated(token_ids[last], finish_reason, item.choice, item.output.scores[last], item.output.prompt_scores)
