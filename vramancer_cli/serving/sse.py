"""Server-sent events: how a frame is written, and how silence is filled (WHATWG HTML, 9.2 Server-sent events)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, TypeVar

import msgspec

DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n\n"

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """One event. JSON escapes every line break, so the data is always one line."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


async def with_silence(items: AsyncGenerator[T, None], silence_s: float) -> AsyncGenerator[T | None, None]:
    """The same items, and a None for every `silence_s` in which none came; raises what `items` raises.

    One task of its own iterates `items` from start to end, one item ahead of the reader at most. Closing this
    generator, or cancelling whoever waits on it, ends that task and closes `items`.
    """
    queue: asyncio.Queue[tuple[T] | Exception | None] = asyncio.Queue(maxsize=1)
    pump = asyncio.create_task(_pump(items, queue))
    try:
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    got = await queue.get()
            except TimeoutError:
                yield None
                continue
            if got is None:
                return
            if isinstance(got, Exception):
                raise got
            yield got[0]
    finally:
        pump.cancel()
        await asyncio.wait({pump})


async def _pump(items: AsyncGenerator[T, None], queue: asyncio.Queue[tuple[T] | Exception | None]) -> None:
    try:
        async with aclosing(items):
            async for item in items:
                await queue.put((item,))
    except Exception as error:  # handed over to the reader, who raises it
        await queue.put(error)
    else:
        await queue.put(None)
