from __future__ import annotations

import asyncio

import pytest

from vramancer_cli.runtime.tasks import task_group


async def fail() -> None:
    raise KeyError("first")


async def test_the_first_error_comes_out_as_itself_and_ends_the_others() -> None:
    ended: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("other")

    with pytest.raises(KeyError, match="first"):
        async with task_group() as group:
            group.create_task(wait())
            await asyncio.sleep(0)
            group.create_task(fail())
            await asyncio.sleep(60)
    assert ended == ["other"]


async def test_an_error_of_the_body_and_one_of_a_group_in_a_group() -> None:
    with pytest.raises(ValueError, match="body"):
        async with task_group():
            raise ValueError("body")
    with pytest.raises(KeyError):
        async with task_group() as outer, task_group() as inner:
            outer.create_task(asyncio.sleep(60))
            inner.create_task(fail())


async def test_cancelling_goes_through() -> None:
    async def both() -> None:
        async with task_group() as group:
            group.create_task(asyncio.sleep(60))

    task = asyncio.create_task(both())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
