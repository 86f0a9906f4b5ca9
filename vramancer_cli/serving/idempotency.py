"""The Idempotency-Key header: a request that comes again with the same key is answered, and not run, a second time.

After draft-ietf-httpapi-idempotency-key-header and Stripe's API: the same key and body get the first request's answer,
from its beginning, also while it is still being made and after its client has gone; the same key with another body is
422. A request that was refused, or whose answer failed, has not used its key up. No routes here.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from vramancer_cli.errors import NotReadyError
from vramancer_cli.serving.accepted_keys import KEPT_S, AcceptedKeys
from vramancer_cli.serving.faults import Fault, RefusedError

HEADER: Final = "Idempotency-Key"
MOST_ANSWERS: Final = 512
MOST_BYTES: Final = 64 << 20
"""Of answers that are kept to be told again: beyond either bound the oldest go."""
MOST_KEY_LETTERS: Final = 255
_KEY: Final = re.compile(r"[\x21-\x7e]+")

Frames = Callable[[], AsyncGenerator[bytes, None]]


@dataclass(frozen=True, slots=True)
class Keyed:
    """A request that came with a key: digests of the key (with who used it, and where) and of the body."""

    key: str
    body: str


def keyed(request: web.Request, caller: str, body: bytes) -> Keyed | None:
    """None for a request without the header. The draft writes the key in quotes; without them it is taken too.

    Raises RefusedError for a key that is none.
    """
    values = request.headers.getall(HEADER, [])
    if not values:
        return None
    key = values[0][1:-1] if len(values[0]) > 1 and values[0][0] == values[0][-1] == '"' else values[0]
    if len(values) > 1 or len(key) > MOST_KEY_LETTERS or not _KEY.fullmatch(key):
        sentence = f"'{HEADER}' is one key of 1 to {MOST_KEY_LETTERS} visible ASCII letters."
        raise RefusedError(Fault(400, sentence, param=HEADER, code="invalid_idempotency_key"))
    return Keyed(_digest(f"{caller}\n{request.path}\n{key}".encode()), _digest(body))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(eq=False, slots=True)
class Kept:
    """An answer that is being made or was: its frames from the first on. `whole`: it came to its proper end."""

    body: str
    frames: list[bytes] = field(default_factory=list[bytes])
    size_bytes: int = 0
    ended: bool = False
    whole: bool = False
    error: Exception | None = None
    grown: asyncio.Event = field(default_factory=asyncio.Event)

    def grow(self) -> None:
        grown, self.grown = self.grown, asyncio.Event()
        grown.set()

    async def told(self) -> AsyncGenerator[bytes, None]:
        """From the beginning; as it is made, where it still is. Raises what made it fail."""
        place = 0
        while True:
            while place < len(self.frames):
                yield self.frames[place]
                place += 1
            if self.ended:
                break
            await self.grown.wait()
        if self.error is not None:
            raise self.error


class Idempotency:
    """One server's. `tell` on the event loop."""

    def __init__(self, accepted: AcceptedKeys, clock: Callable[[], float] = time.time) -> None:
        self._accepted = accepted
        self._clock = clock
        self._lock = asyncio.Lock()
        self._answers: dict[str, Kept] = {}
        self._ends_s: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def answer(self, keyed: Keyed, make: Frames, is_whole: Callable[[bytes], bool]) -> Kept:
        """The answer to it: the first one's, or a new one that `make` makes and nobody who leaves can stop.

        `is_whole`: whether a last frame says so. Raises RefusedError.
        """
        async with self._lock:
            self._forget_old()
            kept = self._answers.get(keyed.key)
            body = kept.body if kept is not None else self._accepted.body_of(keyed.key, self._clock())
            if body not in (None, keyed.body):
                sentence = f"This '{HEADER}' was used for another request: a new request takes a new key."
                raise RefusedError(Fault(422, sentence, param=HEADER, code="idempotency_key_reused"))
            if kept is not None:
                return kept
            if body is not None:
                raise RefusedError(_lost())
            await self._accept(keyed)
            return self._begin(keyed, make, is_whole)

    async def _accept(self, keyed: Keyed) -> None:
        try:
            await asyncio.to_thread(self._accepted.accept, keyed.key, keyed.body, self._clock())
        except OSError as error:
            sentence = f"The '{HEADER}' cannot be kept: {error.strerror or error}. Without the header it would be run."
            raise RefusedError(Fault(503, sentence, "server_error", HEADER, "idempotency_not_kept")) from error

    def _begin(self, keyed: Keyed, make: Frames, is_whole: Callable[[bytes], bool]) -> Kept:
        kept = self._answers[keyed.key] = Kept(keyed.body)
        task = asyncio.create_task(self._make(keyed.key, kept, make, is_whole), name="keyed-answer")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return kept

    async def _make(self, key: str, kept: Kept, make: Frames, is_whole: Callable[[bytes], bool]) -> None:
        try:
            async with aclosing(make()) as frames:
                async for frame in frames:
                    kept.frames.append(frame)
                    kept.size_bytes += len(frame)
                    kept.grow()
            kept.whole = bool(kept.frames) and is_whole(kept.frames[-1])
        except asyncio.CancelledError:
            kept.error = NotReadyError("The node is shutting down.")
            raise
        except Exception as error:  # for those who read it
            kept.error = error
        finally:
            kept.ended = True
            kept.grow()
        if kept.whole:
            self._ends_s[key] = self._clock()
        else:
            await self._give_back(key)

    async def _give_back(self, key: str) -> None:
        """Who tries again runs it again: it came to nothing."""
        async with self._lock:
            del self._answers[key]
            with suppress(OSError):  # then it stays used
                await asyncio.to_thread(self._accepted.refuse, key)

    def _forget_old(self) -> None:
        """Those longest ended go first; what is still being made stays."""
        for key in list(self._ends_s):
            size_bytes = sum(kept.size_bytes for kept in self._answers.values())
            is_old = self._clock() - self._ends_s[key] > KEPT_S
            if not is_old and size_bytes <= MOST_BYTES and len(self._answers) < MOST_ANSWERS:
                return
            del self._ends_s[key], self._answers[key]

    async def close(self) -> None:
        """Ends what is still being made. What was accepted stays so: it may have been told in part."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _lost() -> Fault:
    sentence = (
        f"A request with this '{HEADER}' was accepted before, and its answer is not kept here any more (the server may "
        f"have been started again). It is not run twice: send a new key to run it again."
    )
    return Fault(409, sentence, param=HEADER, code="idempotency_answer_lost")
