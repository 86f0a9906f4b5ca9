"""Work that passes from device to device, on real threads."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.helpers.arithmetic_engine import ArithmeticEngine
from transport.messages import Step, StepRow
from vramancer_cli.runtime.device_thread import DeviceClosedError, DeviceThread
from vramancer_cli.runtime.local_devices import Leg, LocalDevice, along, node_load

WAIT_S = 10.0
STEP = Step(1, 5, (StepRow(9, 0, 3, (0,), ((1,),), 1),))


@pytest.fixture
def devices() -> Iterator[list[LocalDevice]]:
    local = [LocalDevice(ArithmeticEngine(1000, index=index), DeviceThread(f"{index}")) for index in range(2)]
    yield local
    for device in local:
        device.executor.close()


class Walk:
    """Goes along legs and waits for the end; `story` has each leg's value, and the thread that it ran on."""

    def __init__(self, *devices: LocalDevice) -> None:
        self.story: list[tuple[list[int], str]] = []
        self.legs = [Leg(device, self.leg, "compute", 0) for device in devices]
        self.ended = threading.Event()

    def leg(self, value: list[int]) -> list[int]:
        self.story.append((value, threading.current_thread().name))
        return [*value, len(value)]

    def go(self) -> tuple[object, BaseException | None, str]:
        def done(result: object, error: BaseException | None) -> None:
            self.result = (result, error, threading.current_thread().name)
            self.ended.set()

        along(self.legs, [], self.legs[0].device.recorder.of_step(STEP), done)
        assert self.ended.wait(WAIT_S)
        return self.result


def test_each_leg_runs_on_its_own_devices_thread(devices: list[LocalDevice]) -> None:
    first, second = devices
    walk = Walk(first, first, second, first)
    assert walk.go() == ([0, 1, 2, 3], None, "device-0")
    assert [name for _, name in walk.story] == ["device-0", "device-0", "device-1", "device-0"]
    assert (first.engine.handed_over, second.engine.handed_over) == (1, 1)


def test_an_error_ends_the_way_where_it_happens(devices: list[LocalDevice]) -> None:
    first, second = devices
    walk = Walk(first, second, first)
    error = ValueError("bad")

    def fails(_value: object) -> object:
        raise error

    walk.legs[1] = Leg(second, fails, "compute", 0)
    assert walk.go() == (None, error, "device-1")
    assert len(walk.story) == 1


def test_a_later_device_that_takes_no_work_ends_the_way(devices: list[LocalDevice]) -> None:
    first, second = devices
    second.executor.close()
    result, error, where = Walk(first, second).go()
    assert (result, where) == (None, "device-0")
    assert isinstance(error, DeviceClosedError)
    first.executor.close()
    with pytest.raises(DeviceClosedError):
        Walk(first).go()


def test_what_a_node_tells_of_its_devices(devices: list[LocalDevice]) -> None:
    devices[1].engine.used_bytes = 7
    load = node_load(devices, 3)
    assert [device.memory_used_bytes for device in load.devices] == [0, 7]
    assert (load.memory_used_bytes, load.layer_tokens, load.steps) == (7, 0, 3)


def test_each_leg_and_each_copy_between_devices_leaves_a_span(devices: list[LocalDevice]) -> None:
    first, second = devices
    assert first.recorder is not second.recorder
    second = replace(second, position=1, recorder=first.recorder)
    walk = Walk(first, second)
    walk.go()
    seen = [(s.kind, s.number, s.device, s.rows, s.tokens, s.prompt_tokens) for s in first.recorder.lately(WAIT_S)]
    assert seen == [("compute", 5, 0, 1, 3, 3), ("copy", 5, 0, 0, 0, 0), ("compute", 5, 1, 1, 3, 3)]
