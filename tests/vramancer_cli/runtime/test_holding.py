from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from tests.helpers.cluster import until
from vramancer_cli.runtime import holding
from vramancer_cli.runtime.device_thread import DeviceThread
from vramancer_cli.runtime.holding import Holding


class Part:
    """Notes in `story` what becomes of it, and on which thread."""

    def __init__(self, name: str, story: list[str]) -> None:
        self._name, self._story = name, story
        story.append(f"load {name}")

    def close(self) -> None:
        self._story.append(f"close {self._name} on {threading.current_thread().name}")


@pytest.fixture
def device() -> Iterator[DeviceThread]:
    device = DeviceThread("holding")
    yield device
    device.close()


async def test_what_is_held_is_closed_on_the_devices_thread_in_order(device: DeviceThread) -> None:
    held, story = Holding([device]), list[str]()
    assert isinstance(await held.load("stage", lambda _: Part("stage", story)), Part)
    held.keep(Part("link", story))
    held.let_go()
    assert isinstance(await held.load("stage", lambda _: Part("next", story)), Part)
    assert story[:2] == ["load stage", "load link"]
    assert set(story[2:4]) == {"close stage on device-holding", "close link on device-holding"}
    assert story[4:] == ["load next"]


async def test_letting_go_of_what_is_still_loading_closes_it_before_the_next_is_loaded(device: DeviceThread) -> None:
    held, story, gate = Holding([device]), list[str](), threading.Event()

    def load_slowly(_: object) -> Part:
        gate.wait(5)
        return Part("old", story)

    old = asyncio.create_task(held.load("stage", load_slowly))
    await asyncio.sleep(0.01)
    held.let_go()
    new = asyncio.create_task(held.load("stage", lambda _: Part("new", story)))
    await asyncio.sleep(0.01)
    gate.set()
    assert await old is None
    assert await new is not None
    assert story == ["load old", "close old on device-holding", "load new"]


async def test_letting_go_between_the_end_of_a_load_and_its_news(device: DeviceThread) -> None:
    """The thread is done, but the loop has not heard of it yet."""
    held, story = Holding([device]), list[str]()
    loading = asyncio.create_task(held.load("stage", lambda _: Part("stage", story)))
    await asyncio.sleep(0)
    while not story:
        pass  # the loop stands still meanwhile
    held.let_go()
    assert await loading is None
    await until(lambda: story == ["load stage", "close stage on device-holding"])


async def test_what_waits_to_be_loaded_is_not_even_begun(device: DeviceThread) -> None:
    held, story, gate = Holding([device]), list[str](), threading.Event()
    device.submit(lambda: gate.wait(5), lambda *_: None)
    loading = asyncio.create_task(held.load("stage", lambda _: Part("stage", story)))
    await asyncio.sleep(0)
    held.let_go()
    gate.set()
    assert await loading is None
    assert story == []


async def test_a_cancelled_load_leaks_nothing(device: DeviceThread) -> None:
    held, story, gate = Holding([device]), list[str](), threading.Event()

    def load_slowly(_: object) -> Part:
        gate.wait(5)
        return Part("stage", story)

    loading = asyncio.create_task(held.load("stage", load_slowly))
    await asyncio.sleep(0.01)
    loading.cancel()
    held.let_go()
    gate.set()
    await until(lambda: story == ["load stage", "close stage on device-holding"])


async def test_an_error_goes_to_who_loads_and_one_bad_close_does_not_keep_the_others(device: DeviceThread) -> None:
    held, story = Holding([device]), list[str]()
    with pytest.raises(ZeroDivisionError):
        await held.load("stage", lambda _: Part(str(1 // 0), story))
    await held.load("stage", lambda _: Part("stage", story))

    class Broken:
        def close(self) -> None:
            raise OSError("broken")

    held.keep(Broken())
    held.let_go()
    await until(lambda: story == ["load stage", "close stage on device-holding"])
    assert await device.run(lambda: 1) == 1


async def test_closing_waits_for_all_but_a_long_load(device: DeviceThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "CLOSE_DEADLINE_S", 0.05)
    held, story, gate = Holding([device]), list[str](), threading.Event()
    await held.load("stage", lambda _: Part("stage", story))
    await held.close()
    assert story == ["load stage", "close stage on device-holding"]
    device.submit(lambda: gate.wait(5), lambda *_: None)
    async with asyncio.timeout(2):
        await held.close()
    gate.set()


async def test_a_part_is_made_of_the_one_before_it_and_only_its_own_slot_is_touched(device: DeviceThread) -> None:
    held, story = Holding([device]), list[str]()
    ends = await held.load("ends", lambda _: Part("ends", story))
    first = await held.load("stage", lambda _: Part("first", story))
    held.keep(Part("link", story))
    held.drop_links()
    seen: list[object] = []
    assert await held.load("stage", lambda old: (seen.append(old), Part("second", story))[1]) is not None
    assert await held.load("ends", lambda old: (seen.append(old), old)[1]) is ends
    assert seen == [first, ends]
    held.drop("stage")
    await device.run(lambda: None)
    closed = [line for line in story if line.startswith("close")]
    assert closed == ["close link on device-holding", "close second on device-holding"]


async def test_of_two_that_are_asked_for_at_once_the_first_is_not_even_begun(device: DeviceThread) -> None:
    held, story, gate = Holding([device]), list[str](), threading.Event()
    device.submit(lambda: gate.wait(5), lambda *_: None)
    first = asyncio.create_task(held.load("stage", lambda _: Part("first", story)))
    await asyncio.sleep(0)
    second = asyncio.create_task(held.load("stage", lambda _: Part("second", story)))
    await asyncio.sleep(0)
    gate.set()
    assert await first is None
    assert await second is not None
    assert story == ["load second"]


async def test_a_load_that_is_overtaken_gives_what_it_made_to_the_next(device: DeviceThread) -> None:
    held, story, gate = Holding([device]), list[str](), threading.Event()

    def load_slowly(_: object) -> Part:
        gate.wait(5)
        return Part("first", story)

    first = asyncio.create_task(held.load("stage", load_slowly))
    await asyncio.sleep(0.01)
    seen: list[object] = []
    second = asyncio.create_task(held.load("stage", lambda old: (seen.append(old), Part("second", story))[1]))
    await asyncio.sleep(0.01)
    gate.set()
    assert await first is None
    assert await second is not None
    assert [type(old) for old in seen] == [Part]


async def test_settling_leaves_what_is_there_and_begins_nothing_more() -> None:
    devices = [DeviceThread("first"), DeviceThread("second")]
    try:
        held, story = Holding(devices), list[str]()
        began, gate = threading.Event(), threading.Event()
        await held.load("stage", lambda _: Part("there", story), 1)

        def load_slowly(_: object) -> Part:
            began.set()
            gate.wait(5)
            return Part("under way", story)

        under_way = asyncio.create_task(held.load("stage", load_slowly))
        await asyncio.to_thread(began.wait, 5)
        waits = asyncio.create_task(held.load("ends", lambda _: Part("ends", story)))
        settling = asyncio.create_task(held.settle("stage"))
        await asyncio.sleep(0)
        assert not settling.done()
        gate.set()
        await settling
        assert await under_way is None and isinstance(await waits, Part)
        assert story == ["load there", "load under way", "load ends"]
        await held.close()
    finally:
        for device in devices:
            device.close()
