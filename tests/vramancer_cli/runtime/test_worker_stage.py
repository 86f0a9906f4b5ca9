from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from tests.helpers.arithmetic_engine import ArithmeticEngine, LoopDevice
from tests.helpers.pipeline_bench import (
    HEAD,
    SMALL,
    WHOLE,
    Silence,
    address,
    hidden,
    make_assign,
    make_plan,
    misshapen,
    no_control,
)
from tests.helpers.simulated_cluster import SimulatedHub, hello, node_id
from tests.helpers.virtual_time import run
from transport.contracts import Received, TensorBuffer
from transport.errors import LinkClosedError, RemoteProtocolError
from transport.messages import Activation, BadFrames, Message, Ping, StageFailed, StageReady, Step, StepRow
from transport.types import Address
from vramancer_cli.runtime.device_thread import DeviceThread
from vramancer_cli.runtime.local_devices import LocalDevice
from vramancer_cli.runtime.worker_stage import LINK_GRACE_S, WorkerStage

PLAN = make_plan((SMALL, SMALL, SMALL), epoch=4)
NOWHERE = Address("nowhere", 1)


class StageBench:
    """Node 1 with the stage in the middle of three; nodes 0 and 2 take frames and remember them."""

    def __init__(self) -> None:
        self.hub = SimulatedHub(0.001)
        self.engine = ArithmeticEngine(WHOLE)
        self.reports: list[Message] = []
        self.stage = WorkerStage([LocalDevice(self.engine, LoopDevice(0.01))], self.reports.append)
        self.sinks = {number: Silence() for number in (0, 2)}
        for number, sink in self.sinks.items():
            self.hub.network(hello(number), address(number), no_control, sink)
        self.network = self.hub.network(hello(1), address(1), no_control, self.stage)

    async def hold(self, stage: int = 1, head_address: Address = NOWHERE) -> Message | None:
        return await self.stage.hold(make_assign(PLAN, stage), self.network, head_address)

    def send(self, step: Step, *, sender: int = 0, stage: int = 1, buffer: TensorBuffer | None = None) -> None:
        tensor = hidden([1] * step.token_count) if buffer is None else buffer
        received = Received(step.epoch, step.number, Activation(stage, step), {"hidden_states": tensor})
        self.stage.on_frame(node_id(sender), received)


def prompt_step(number: int = 0, epoch: int = 4, start: int = 0) -> Step:
    return Step(epoch, number, (StepRow(0, start, 3, (0,), ((0,),), outputs=1),))


def scene(act: Callable[[StageBench], object]) -> None:
    """Run `act` with a stage that is held."""

    async def main() -> None:
        bench = StageBench()
        assert isinstance(await bench.hold(), StageReady)
        await asyncio.sleep(0)
        bench.reports.clear()  # of the load's progress
        result = act(bench)
        if asyncio.iscoroutine(result):
            await result

    run(main())


def test_a_step_goes_through_to_the_next_node() -> None:
    async def act(bench: StageBench) -> None:
        bench.send(prompt_step())
        await asyncio.sleep(0.1)
        [received] = bench.sinks[2].frames
        assert isinstance(received.message, Activation)
        assert (received.message.stage, received.message.step) == (2, prompt_step())
        assert bench.stage.steps == 1
        assert bench.engine.layer_tokens == 3 * len(PLAN.stages[1].layers)
        assert bench.reports == []

    scene(act)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_frames_of_older_plans_are_dropped() -> None:
    async def act(bench: StageBench) -> None:
        bench.send(prompt_step(epoch=3))
        bench.stage.let_go()
        bench.send(prompt_step())
        await asyncio.sleep(2)
        assert bench.sinks[2].frames == []
        assert bench.reports == []

    scene(act)


@pytest.mark.parametrize(
    "send",
    [
        lambda bench: bench.send(prompt_step(), sender=2),
        lambda bench: bench.send(prompt_step(), sender=9),
        lambda bench: bench.send(prompt_step(), stage=2),
        lambda bench: bench.send(prompt_step(number=1)),
        lambda bench: bench.stage.on_frame(HEAD, Received(4, 0, Ping(1))),
        lambda bench: bench.stage.on_frame(HEAD, Received(4, 0, Activation(1, prompt_step()))),
    ],
    ids=["from the stage behind", "from a stranger", "for another stage", "a gap", "a ping", "no tensor"],
)
def test_a_wrong_frame_closes_its_link(send: Callable[[StageBench], None]) -> None:
    def act(bench: StageBench) -> None:
        with pytest.raises(RemoteProtocolError):
            send(bench)

    scene(act)


def test_a_step_that_came_is_not_taken_again() -> None:
    def act(bench: StageBench) -> None:
        bench.send(prompt_step())
        with pytest.raises(RemoteProtocolError, match="was due"):
            bench.send(prompt_step())

    scene(act)


# --- what fails -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "buffer"),
    [(prompt_step(), misshapen(3)), (prompt_step(start=7), None)],
    ids=["a wrong tensor", "tokens that are not there"],
)
def test_a_step_that_cannot_be_executed_is_told(step: Step, buffer: TensorBuffer | None) -> None:
    async def act(bench: StageBench) -> None:
        bench.send(step, buffer=buffer)
        await asyncio.sleep(0.1)
        [failed] = bench.reports
        assert isinstance(failed, StageFailed)
        assert (failed.epoch, failed.number) == (4, 0)
        assert failed.reason

    scene(act)


async def test_a_device_that_takes_no_work_is_told() -> None:
    bench, device = StageBench(), DeviceThread("stage")
    bench.stage = WorkerStage([LocalDevice(bench.engine, device)], bench.reports.append)
    assert isinstance(await bench.hold(), StageReady)
    await asyncio.sleep(0)
    bench.reports.clear()
    device.close()
    bench.send(prompt_step())
    await asyncio.sleep(0)
    assert [type(report) for report in bench.reports] == [StageFailed]


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with a step on its way"])
def test_a_broken_link_onward_is_told_after_a_moment(busy: bool) -> None:
    async def act(bench: StageBench) -> None:
        bench.hub.kill(node_id(2))
        if busy:
            bench.send(prompt_step())
        await asyncio.sleep(LINK_GRACE_S / 2)
        assert bench.reports == []
        await asyncio.sleep(LINK_GRACE_S)
        assert {report.epoch for report in bench.reports if isinstance(report, StageFailed)} == {4}

    scene(act)


def test_a_broken_link_is_not_told_once_the_head_has_seen_for_itself() -> None:
    async def act(bench: StageBench) -> None:
        bench.hub.kill(node_id(2))
        await asyncio.sleep(LINK_GRACE_S / 2)
        bench.stage.let_go()
        await asyncio.sleep(5)
        assert bench.reports == []

    scene(act)


# --- dialling onward ------------------------------------------------------------------------------------------------


def test_where_the_next_node_is_not_reached_the_head_relays() -> None:
    async def main() -> None:
        bench = StageBench()
        bench.hub.kill(node_id(2))
        ready = await bench.hold()
        assert isinstance(ready, StageReady)
        assert not ready.direct
        bench.send(prompt_step())
        await asyncio.sleep(0.1)
        assert len(bench.sinks[0].frames) == 1

    run(main())


def test_the_last_stage_sends_to_the_head_where_it_answered() -> None:
    async def main() -> None:
        bench = StageBench()
        assign = make_assign(PLAN, 2)
        del assign.addresses[HEAD]
        ready = await bench.stage.hold(assign, bench.network, address(0))
        assert isinstance(ready, StageReady)
        assert ready.direct

    run(main())


def test_a_stage_that_reaches_nobody_gives_its_memory_back() -> None:
    async def main() -> None:
        bench = StageBench()
        for number in (0, 2):
            bench.hub.kill(node_id(number))
        failed = await bench.hold()
        assert isinstance(failed, StageFailed)
        assert failed.epoch == 4
        assert bench.stage.layers is None
        await asyncio.sleep(0.1)
        assert bench.engine.used_bytes == 0

    run(main())


def test_another_stage_replaces_the_one_that_is_held() -> None:
    async def act(bench: StageBench) -> None:
        assert isinstance(await bench.hold(2), StageReady)
        assert bench.engine.used_bytes == PLAN.stages[2].total_bytes
        assert bench.stage.layers == PLAN.stages[2].layers

    scene(act)


# --- whose fault it was ---------------------------------------------------------------------------------------------


def last_stage(act: Callable[[StageBench], object]) -> None:
    """As `scene`, behind a node 0 that is not the head: that is node 2."""

    async def main() -> None:
        bench = StageBench()
        plan = msgspec.structs.replace(PLAN, ends=node_id(2))
        bench.sinks[0] = Silence()
        assign = msgspec.structs.replace(make_assign(PLAN, 1), plan=plan)
        assert isinstance(await bench.stage.hold(assign, bench.network, address(2)), StageReady)
        await asyncio.sleep(0)
        bench.reports.clear()
        result = act(bench)
        if asyncio.iscoroutine(result):
            await result

    run(main())


def test_values_that_cannot_be_are_reported_as_their_senders_fault() -> None:
    async def act(bench: StageBench) -> None:
        bench.send(prompt_step(), sender=0, buffer=misshapen(3))
        await asyncio.sleep(0.1)
        [report] = bench.reports
        assert isinstance(report, BadFrames)
        assert (report.epoch, report.sender) == (4, node_id(0))

    last_stage(act)


def test_a_data_link_that_ended_in_garbage_is_reported_and_one_that_broke_is_not() -> None:
    async def act(bench: StageBench) -> None:
        bench.stage.on_closed(node_id(0), LinkClosedError())
        bench.stage.on_closed(node_id(0), None)
        bench.stage.on_closed(node_id(0), RemoteProtocolError("no magic"))
        await asyncio.sleep(0.1)
        assert bench.reports == [BadFrames(4, node_id(0), "no magic")]

    last_stage(act)


def test_a_plan_that_is_not_held_yet_cannot_send_anything() -> None:
    def act(bench: StageBench) -> None:
        with pytest.raises(RemoteProtocolError, match="not held here"):
            bench.send(prompt_step(epoch=5))

    scene(act)
