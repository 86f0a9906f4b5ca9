from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from vramancer_cli.serving.sse import encode, with_silence


def test_an_event_is_one_line_of_data_whatever_the_text() -> None:
    frame = encode({"text": "two\nlines\r\n\n é"})
    assert frame.startswith(b"data: {") and frame.endswith(b"}\n\n")
    assert frame.count(b"\n") == 2 and b"\r" not in frame


async def counting(pauses_s: list[float], closed: list[str], error: Exception | None = None) -> AsyncGenerator[int]:
    try:
        for number, pause_s in enumerate(pauses_s):
            await asyncio.sleep(pause_s)
            yield number
        if error:
            raise error
    finally:
        closed.append("closed")


async def test_silence_is_told_and_no_item_is_lost() -> None:
    closed: list[str] = []
    got = [item async for item in with_silence(counting([0, 0.12, 0], closed), 0.05)]
    assert [item for item in got if item is not None] == [0, 1, 2]
    assert got[1] is None and closed == ["closed"]


async def test_an_error_comes_after_the_items_before_it() -> None:
    got: list[int | None] = []
    with pytest.raises(ValueError, match="broken"):
        async for item in with_silence(counting([0, 0], [], ValueError("broken")), 1.0):
            got.append(item)
    assert got == [0, 1]


async def test_closing_closes_what_is_inside_even_while_it_waits() -> None:
    closed: list[str] = []
    events = with_silence(counting([0, 60], closed), 0.02)
    assert await anext(events) == 0
    assert await anext(events) is None
    await events.aclose()
    assert closed == ["closed"]


async def test_cancelling_the_reader_closes_what_is_inside() -> None:
    closed: list[str] = []

    async def read() -> None:
        async for _ in with_silence(counting([0, 60], closed), 30.0):
            pass

    reader = asyncio.create_task(read())
    await asyncio.sleep(0.02)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await asyncio.sleep(0)
    assert closed == ["closed"]


async def test_a_slow_reader_holds_the_writer_back() -> None:
    made: list[int] = []

    async def eager() -> AsyncGenerator[int]:
        for number in range(1000):
            made.append(number)
            yield number

    events = with_silence(eager(), 1.0)
    await anext(events)
    await asyncio.sleep(0.02)
    assert len(made) <= 4
    await events.aclose()
