from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.helpers.arithmetic_engine import answer
from tests.helpers.pipeline_bench import HEAD, SMALL, WHOLE, PipelineBench, hidden, misshapen
from tests.helpers.simulated_cluster import node_id
from tests.helpers.virtual_time import run
from transport.contracts import Received, TensorBuffer
from transport.errors import LinkClosedError, RemoteProtocolError
from transport.messages import Activation, Ping, Step
from vramancer_cli.errors import VramancerError
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.runtime.device_thread import DeviceClosedError, DeviceThread
from vramancer_cli.scheduling.step_parts import Scheduled


@pytest.mark.parametrize("limits", [(WHOLE,), (SMALL, WHOLE), (SMALL,) * 3, (1000, WHOLE)])
def test_the_tokens_are_the_same_over_any_number_of_stages(limits: tuple[int, ...]) -> None:
    async def scene() -> None:
        async with PipelineBench(*limits) as bench:
            assert await bench.answer([3, 1, 4], 20) == answer([3, 1, 4], 20)
            assert bench.failed == []

    run(scene())


def test_the_head_relays_where_a_worker_cannot_dial_the_next() -> None:
    async def scene() -> None:
        bench = PipelineBench(SMALL, SMALL, SMALL)
        bench.hub.separate(node_id(1), node_id(2))
        await asyncio.sleep(0)
        async with bench:
            assert [bench.ready[node_id(n)].direct for n in (1, 2)] == [False, True]
            assert set(bench.senders) == {node_id(1), node_id(2)}
            assert await bench.answer([3, 1, 4], 20) == answer([3, 1, 4], 20)

    run(scene())


async def test_on_a_real_device_thread() -> None:
    device = DeviceThread("pipeline")
    async with PipelineBench(WHOLE, device=device) as bench:
        assert await bench.answer([2, 7], 30) == answer([2, 7], 30)
    device.close()


# --- what is refused ------------------------------------------------------------------------------------------------


def started(bench: PipelineBench) -> Scheduled:
    """A step of three tokens under way, whose frames nobody but the test answers."""
    bench.scheduler.add(0, (1, 2, 3), Sampling(), 5, frozenset())
    scheduled = bench.scheduler.schedule(0.0)
    assert scheduled is not None
    bench.pipeline.submit(scheduled)
    return scheduled


def frame(step: Step, stage: int, buffer: TensorBuffer) -> Received:
    return Received(step.epoch, step.number, Activation(stage, step), {"hidden_states": buffer})


def other(step: Step, number: int) -> Step:
    return Step(step.epoch, number, step.rows)


Forge = Callable[[Step], Received]


@pytest.mark.parametrize(
    ("sender", "forge", "sentence"),
    [
        (9, lambda step: frame(step, 3, hidden([5])), "not before it"),
        (1, lambda step: frame(step, 3, hidden([5])), "not before it"),
        (2, lambda step: frame(step, 7, hidden([5])), "not before it"),
        (2, lambda step: frame(other(step, 8), 3, hidden([5])), "not asked for"),
        (2, lambda step: frame(Step(step.epoch, 0, step.rows, ended=(4,)), 3, hidden([5])), "not asked for"),
        (1, lambda step: frame(step, 2, hidden([5, 6, 7])), "does not feed"),
        (2, lambda step: frame(step, 3, hidden([5, 6])), "not 1 rows"),
        (2, lambda step: frame(step, 3, misshapen(1)), "uint8"),
        (2, lambda step: Received(step.epoch, step.number, Activation(3, step)), "something else"),
        (2, lambda step: Received(step.epoch, step.number, Ping(1)), "something else"),
    ],
)
def test_a_wrong_frame_is_its_senders_fault(sender: int, forge: Forge, sentence: str) -> None:
    async def scene() -> None:
        async with PipelineBench(SMALL, SMALL, SMALL) as bench:
            bench.hub.partition(node_id(1))
            step = started(bench).step
            bench.pipeline.on_frame(node_id(sender), forge(step))
            await asyncio.sleep(1)
            [(node, error)] = bench.failed
            assert node == node_id(sender)
            assert isinstance(error, RemoteProtocolError)
            assert sentence in str(error)

    run(scene())


def test_a_result_that_comes_twice_is_refused() -> None:
    async def scene() -> None:
        async with PipelineBench(SMALL, SMALL, SMALL) as bench:
            bench.hub.partition(node_id(1))
            step = started(bench).step
            for _ in range(2):
                bench.pipeline.on_frame(node_id(2), frame(step, 3, hidden([5])))
            await asyncio.sleep(1)
            assert [node for node, _ in bench.failed] == [node_id(2)]

    run(scene())


def test_a_frame_of_another_epoch_is_nobodys_fault() -> None:
    async def scene() -> None:
        async with PipelineBench(SMALL, SMALL, SMALL) as bench:
            bench.hub.partition(node_id(1))
            step = started(bench).step
            late = Step(step.epoch - 1, 0, ())
            bench.pipeline.on_frame(node_id(2), frame(late, 3, hidden([])))
            await asyncio.sleep(1)
            assert bench.failed == []

    run(scene())


# --- what breaks ----------------------------------------------------------------------------------------------------


def test_a_link_that_takes_nothing_is_the_next_nodes_fault() -> None:
    async def scene() -> None:
        async with PipelineBench(SMALL, SMALL, SMALL) as bench:
            bench.hub.kill(node_id(1))
            await asyncio.sleep(0.1)
            started(bench)
            await asyncio.sleep(1)
            [(node, error)] = bench.failed
            assert node == node_id(1)
            assert isinstance(error, LinkClosedError)

    run(scene())


def test_what_fails_on_the_head_is_the_heads_fault() -> None:
    async def scene() -> None:
        async with PipelineBench(WHOLE) as bench:
            bench.scheduler.add(0, (1, 2, 3), Sampling(), 5, frozenset())
            first = bench.scheduler.schedule(0.0)
            assert first is not None
            wrong = Scheduled(Step(1, 0, first.step.rows), (1,), first.readouts)
            bench.pipeline.submit(wrong)
            await asyncio.sleep(1)
            [(node, error)] = bench.failed
            assert node == HEAD
            assert isinstance(error, AssertionError)

    run(scene())


async def test_a_device_that_takes_no_work_is_the_heads_fault() -> None:
    device = DeviceThread("pipeline")
    async with PipelineBench(WHOLE, device=device) as bench:
        device.close()
        started(bench)
        [(node, error)] = bench.failed
        assert node == HEAD
        assert isinstance(error, DeviceClosedError)
        assert isinstance(error, VramancerError)


def test_closing_cancels_what_is_in_flight_and_keeps_quiet_about_the_rest() -> None:
    async def scene() -> None:
        async with PipelineBench(SMALL, SMALL, SMALL) as bench:
            bench.scheduler.add(0, (1, 2, 3), Sampling(), 5, frozenset())
            scheduled = bench.scheduler.schedule(0.0)
            assert scheduled is not None
            tokens = bench.pipeline.submit(scheduled)
            bench.pipeline.close()
            assert tokens.cancelled()
            bench.pipeline.on_frame(node_id(9), frame(scheduled.step, 3, hidden([5])))
            await asyncio.sleep(1)
            assert bench.failed == []

    run(scene())
