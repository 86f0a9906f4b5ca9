from __future__ import annotations

import threading

import pytest

from vramancer_cli.runtime.device_thread import QUEUE_BOUND, DeviceBusyError, DeviceClosedError, DeviceThread


async def test_work_runs_on_one_thread_in_order() -> None:
    device = DeviceThread("test")
    names: list[str] = []
    seen: list[int] = []
    for number in range(20):
        device.submit(
            lambda n=number: (names.append(threading.current_thread().name), n)[1], lambda r, _: seen.append(r)
        )
    assert await device.run(lambda: "last") == "last"
    assert seen == list(range(20))
    assert set(names) == {"device-test"}
    device.close()


async def test_an_error_goes_to_whoever_submitted_and_the_thread_lives_on() -> None:
    device = DeviceThread("test")
    with pytest.raises(ZeroDivisionError):
        await device.run(lambda: 1 // 0)
    assert await device.run(lambda: 2) == 2
    device.close()


async def test_closing_finishes_what_is_queued_and_refuses_more() -> None:
    device = DeviceThread("test")
    done: list[int] = []
    gate = threading.Event()
    device.submit(gate.wait, lambda *_: None)
    device.submit(lambda: 5, lambda result, _: done.append(result))
    gate.set()
    device.close()
    assert done == [5]
    assert "device-test" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(DeviceClosedError):
        device.submit(lambda: None, lambda *_: None)


async def test_a_cancelled_wait_does_not_break_the_thread() -> None:
    import asyncio

    device = DeviceThread("test")
    gate = threading.Event()
    waiting = asyncio.create_task(device.run(gate.wait))
    await asyncio.sleep(0.01)
    waiting.cancel()
    gate.set()
    assert await device.run(lambda: 3) == 3
    device.close()


async def test_a_result_that_nobody_takes_does_not_end_the_thread() -> None:
    device = DeviceThread("test")

    def refuse(_result: object, _error: BaseException | None) -> None:
        raise RuntimeError("the loop is closed")

    device.submit(lambda: 1, refuse)
    device.submit(lambda: 1 // 0, refuse)
    assert await device.run(lambda: 4) == 4
    device.close()


async def test_a_full_queue_refuses_more() -> None:
    device = DeviceThread("test")
    gate = threading.Event()
    device.submit(lambda: gate.wait(5), lambda *_: None)
    with pytest.raises(DeviceBusyError):
        for _ in range(QUEUE_BOUND + 2):
            device.submit(lambda: None, lambda *_: None)
    gate.set()
    device.close()
