from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar, cast

import pytest

from tests.helpers.arithmetic_engine import ArithmeticEngine, LoopDevice
from tests.helpers.pipeline_bench import HEAD, SMALL, WHOLE, Silence, address, make_assign, make_plan, no_control
from tests.helpers.simulated_cluster import SimulatedHub, hello, node_facts, node_id
from tests.helpers.virtual_time import run
from transport.contracts import ControlLink
from transport.errors import ClockError, LinkClosedError, RemovedError, TransportError, TrustError
from transport.messages import (
    AssignRefused,
    Join,
    LoadProgress,
    Message,
    Ping,
    Plan,
    Pong,
    Refused,
    Release,
    Removed,
    Renew,
    Renewed,
    Roll,
    StageFailed,
    StageReady,
    StatusShare,
    Welcome,
)
from transport.types import Address
from vramancer_cli.errors import ModelError
from vramancer_cli.runtime.local_devices import LocalDevice
from vramancer_cli.runtime.renewal import Renewal
from vramancer_cli.runtime.worker import OUTBOX_BOUND, RETRY_FIRST_S, RETRY_LAST_S, RefusedByHeadError, Worker

M = TypeVar("M", bound=Message)
WELCOME = Welcome("home", HEAD, (address(0),), 1.0)


@dataclass
class ScriptedHead:
    """Answers a Join as told, then leaves the link to the test, which reads it through `heard`."""

    answer: Message = WELCOME
    joins: list[Join] = field(default_factory=list)
    heard: list[Message] = field(default_factory=list)
    goodbyes: list[str] = field(default_factory=list)
    link: ControlLink | None = None

    async def on_control(self, link: ControlLink) -> None:
        join = await link.receive()
        assert isinstance(join, Join)
        self.joins.append(join)
        await link.send(self.answer)
        self.link = link
        try:
            while True:
                self.heard.append(await link.receive())
        except TransportError as error:
            self.goodbyes.append(str(error))

    async def tell(self, *messages: Message) -> None:
        assert self.link is not None
        for message in messages:
            await self.link.send(message)

    def only(self, kind: type[M]) -> list[M]:
        return [message for message in self.heard if isinstance(message, kind)]


class WorkerBench:
    """Worker 1 and a scripted head 0 on a hub; node 2 is there to be dialled."""

    def __init__(self, present_bytes: int = WHOLE, work_s: float = 0.01, answer: Message = WELCOME) -> None:
        self.hub = SimulatedHub(0.001)
        self.head = ScriptedHead(answer)
        self.engine = ArithmeticEngine(WHOLE, present_bytes)
        self.device = LoopDevice(work_s)
        self.worker = Worker(lambda: node_facts(1, self.engine), [LocalDevice(self.engine, self.device)])
        self.network = self.hub.network(hello(1), address(1), no_control, self.worker)
        self.hub.network(hello(2), address(2), no_control, Silence())
        self.remembered: list[Sequence[Address]] = []
        self.looked_at: list[float] = []
        self.open_head()

    def open_head(self) -> None:
        self.hub.network(hello(0), address(0), self.head.on_control, Silence())

    async def __aenter__(self) -> WorkerBench:
        self.task = asyncio.create_task(self.worker.stay(self.network, self._find, HEAD, self.remembered.append))
        await asyncio.sleep(0.1)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _find(self) -> Sequence[Address]:
        self.looked_at.append(asyncio.get_running_loop().time())
        return (address(0),)

    async def alive(self, seconds: float) -> None:
        """Time passes, with heartbeats."""
        for number in range(int(seconds)):
            await self.head.tell(Ping(number))
            await asyncio.sleep(1)


def plan(epoch: int = 1) -> Plan:
    return make_plan((SMALL, SMALL, SMALL), epoch)


# --- joining --------------------------------------------------------------------------------------------------------


def test_it_joins_answers_pings_and_keeps_the_status() -> None:
    async def scene() -> None:
        async with WorkerBench() as bench:
            assert bench.head.joins == [Join(node_facts(1, bench.engine))]
            assert bench.worker.cluster == "home"
            assert bench.remembered == [(address(0),)]
            await bench.head.tell(Ping(7), StatusShare(b"{}"))
            await asyncio.sleep(0.1)
            assert [pong.number for pong in bench.head.only(Pong)] == [7]
            assert bench.worker.status == b"{}"
            await bench.alive(20)
            assert len(bench.head.joins) == 1

    run(scene())


def test_a_refusal_ends_it_with_the_heads_words() -> None:
    async def scene() -> None:
        async with WorkerBench(answer=Refused("'attic' has an old torch.", "Update it.")) as bench:
            with pytest.raises(RefusedByHeadError, match="old torch") as caught:
                await bench.task
            assert caught.value.hint == "Update it."

    run(scene())


@pytest.mark.parametrize("answer", [Ping(1), Release(1)])
def test_another_answer_than_welcome_is_tried_again(answer: Message) -> None:
    async def scene() -> None:
        async with WorkerBench(answer=answer) as bench:
            await asyncio.sleep(5)
            assert len(bench.head.joins) > 1
            assert not bench.task.done()

    run(scene())


def test_it_tries_again_after_growing_pauses_and_soon_again_once_it_was_in() -> None:
    async def scene() -> None:
        async with WorkerBench() as bench:
            bench.hub.kill(HEAD)
            await asyncio.sleep(30)
            assert bench.worker.cluster == ""
            pauses = [later - earlier for earlier, later in pairwise(bench.looked_at[1:])]
            assert pauses == pytest.approx([RETRY_LAST_S for _ in pauses], abs=0.05)
            bench.open_head()
            while len(bench.head.joins) < 2:
                await asyncio.sleep(0.1)
            lost_s = asyncio.get_running_loop().time()
            bench.hub.kill(HEAD)
            await asyncio.sleep(1)
            assert bench.looked_at[-1] - lost_s == pytest.approx(RETRY_FIRST_S, abs=0.05)

    run(scene())


def test_a_silent_head_is_left_after_three_heartbeats_and_the_layers_stay_for_it() -> None:
    async def scene() -> None:
        async with WorkerBench() as bench:
            await bench.head.tell(make_assign(plan(), 1))
            await asyncio.sleep(1)
            assert bench.engine.used_bytes > 0
            last_s = asyncio.get_running_loop().time()
            await bench.head.tell(Ping(1))
            while not bench.head.goodbyes:
                await asyncio.sleep(0.01)
            assert asyncio.get_running_loop().time() - last_s == pytest.approx(3.0, abs=0.1)
            await asyncio.sleep(0.1)
            assert bench.worker.layers is None, "it takes no steps"
            assert bench.engine.used_bytes > 0
            await asyncio.sleep(1)
            assert len(bench.head.joins) == 2
            loaded = bench.engine.layers_loaded
            await bench.head.tell(make_assign(plan(), 1))
            await asyncio.sleep(1)
            assert [ready.epoch for ready in bench.head.only(StageReady)] == [1, 1]
            assert bench.engine.layers_loaded == loaded, "they were loaded again"
            await bench.head.tell(Release(1))
            await asyncio.sleep(0.1)
            assert bench.engine.used_bytes == 0

    run(scene())


# --- what it is told ------------------------------------------------------------------------------------------------


def test_it_loads_reports_and_unloads() -> None:
    async def scene() -> None:
        async with WorkerBench() as bench:
            assign = make_assign(plan(), 1)
            stage = assign.plan.stages[1]
            await bench.head.tell(assign)
            await asyncio.sleep(0.5)
            assert bench.head.only(LoadProgress) == [LoadProgress(1, 1, 1)]
            assert bench.head.only(StageReady) == [StageReady(1, stage.weights_bytes, stage.kv_bytes, direct=True)]
            assert bench.worker.layers == stage.layers
            assert bench.engine.used_bytes == stage.total_bytes
            await bench.head.tell(Release(0))
            await asyncio.sleep(0.1)
            assert bench.worker.layers == stage.layers, "it unloaded for an older epoch"
            await bench.head.tell(Release(1))
            await asyncio.sleep(0.1)
            assert bench.worker.layers is None
            assert bench.engine.used_bytes == 0

    run(scene())


def test_more_than_is_present_is_refused_with_both_figures() -> None:
    async def scene() -> None:
        async with WorkerBench(present_bytes=5000) as bench:
            await bench.head.tell(make_assign(plan(), 1))
            await asyncio.sleep(0.5)
            [refused] = bench.head.only(AssignRefused)
            assert (refused.needed_bytes, refused.present_bytes) == (plan().stages[1].total_bytes, 5000)
            assert bench.engine.used_bytes == 0
            assert not bench.head.only(StageReady)

    run(scene())


def test_another_checkpoint_than_the_heads_is_refused() -> None:
    async def scene() -> None:
        async with WorkerBench() as bench:
            bench.engine.own_digest = "1" * 64
            await bench.head.tell(make_assign(plan(), 1))
            await asyncio.sleep(0.5)
            [refused] = bench.head.only(AssignRefused)
            assert refused.present_bytes == 0
            assert "not the head's" in refused.reason
            assert bench.engine.used_bytes == 0

    run(scene())


@pytest.mark.parametrize("error", [ModelError("A tensor is missing."), RuntimeError("out of memory")])
def test_whatever_fails_while_loading_is_told_and_the_node_stays(error: Exception) -> None:
    async def scene() -> None:
        async with WorkerBench() as bench:
            bench.engine.loads_badly = error
            await bench.head.tell(make_assign(plan(), 1))
            await bench.alive(3)
            [refused] = bench.head.only(AssignRefused)
            assert (refused.present_bytes, refused.reason) == (0, str(error))
            assert len(bench.head.only(Pong)) == 3

    run(scene())


def test_pings_are_answered_while_it_loads_for_long() -> None:
    async def scene() -> None:
        async with WorkerBench(work_s=20) as bench:
            await bench.head.tell(make_assign(plan(), 1))
            await bench.alive(10)
            await bench.head.tell(Release(1), make_assign(plan(2), 1))
            await bench.alive(10)
            assert len(bench.head.only(Pong)) == 20
            assert bench.head.goodbyes == []

    run(scene())


def test_a_stage_released_or_replaced_while_it_loads_is_never_reported_and_leaks_nothing() -> None:
    async def scene() -> None:
        async with WorkerBench(work_s=1) as bench:
            for epoch in (1, 2, 3):
                await bench.head.tell(make_assign(plan(epoch), 1))
                await bench.alive(epoch / 2)
                if epoch == 1:
                    await bench.head.tell(Release(1))
            await bench.alive(10)
            assert [ready.epoch for ready in bench.head.only(StageReady)] == [3]
            assert bench.engine.used_bytes == plan().stages[1].total_bytes

    run(scene())


def test_leaving_while_it_loads_leaks_nothing() -> None:
    async def scene() -> None:
        bench = WorkerBench(work_s=1)
        async with bench:
            await bench.head.tell(make_assign(plan(), 1))
            await asyncio.sleep(0.5)
        await asyncio.sleep(5)
        assert bench.engine.used_bytes == 0

    run(scene())


@pytest.mark.parametrize("wrong", [make_assign(plan(), 3), StageFailed(1, 0, "not for you")])
def test_what_a_head_may_not_say_ends_the_link(wrong: Message) -> None:
    async def scene() -> None:
        async with WorkerBench() as bench:
            await bench.head.tell(wrong)
            await asyncio.sleep(0.1)
            assert bench.head.goodbyes == ["the worker left"]

    run(scene())


def test_reports_that_the_head_never_takes_end_the_session() -> None:
    async def scene() -> None:
        async with WorkerBench() as bench:
            session = bench.worker._session
            assert session is not None
            for number in range(OUTBOX_BOUND + 1):
                session.report(LoadProgress(1, number, 1000))
            await asyncio.sleep(0.1)
            assert bench.head.goodbyes == ["the worker left"]
            await asyncio.sleep(1)
            assert len(bench.head.joins) == 2

    run(scene())


def test_serving_over_a_link_ends_with_it() -> None:
    async def scene() -> None:
        bench = WorkerBench()
        link = await bench.network.dial_control((address(0),), HEAD)
        serving = asyncio.create_task(bench.worker.serve(link, bench.network, bench.remembered.append))
        await asyncio.sleep(0.1)
        bench.hub.kill(node_id(0))
        with pytest.raises(LinkClosedError):
            await serving

    run(scene())


# --- trust ------------------------------------------------------------------------------------------------------------


def test_who_was_removed_is_shut_out_of_its_network() -> None:
    async def scene() -> None:
        async with WorkerBench() as bench:
            ended: list[object] = []
            await bench.network.dial_data((address(2),), node_id(2), lambda *end: ended.append(end))
            await bench.head.tell(Roll((node_id(2),), 0.0))
            await asyncio.sleep(0.5)
            assert ended == [(node_id(2), None)]
            with pytest.raises(TrustError):
                await bench.network.dial_data((address(2),), node_id(2), lambda *_: None)
            assert not bench.task.done()

    run(scene())


@pytest.mark.parametrize("when", ["joining", "later"])
def test_once_removed_it_stops_trying(when: str) -> None:
    async def scene() -> None:
        async with WorkerBench(answer=Removed() if when == "joining" else WELCOME) as bench:
            if when == "later":
                await bench.head.tell(make_assign(plan(), 1))
                await asyncio.sleep(0.5)
                await bench.head.tell(Removed())
            async with asyncio.timeout(10):
                with pytest.raises(RemovedError) as caught:
                    await bench.task
            assert caught.value.exit_code == 4
            assert len(bench.head.joins) == 1
            await asyncio.sleep(0.1)
            assert bench.engine.used_bytes == 0

    run(scene())


@dataclass
class ScriptedRenewal:
    """Stands for `renewal.Renewal`, whose own work takes threads and real time."""

    due: bool = True
    error: Exception | None = None
    taken: list[bytes] = field(default_factory=list)
    dialled: int = 0

    async def before_dialling(self, addresses: Sequence[Address]) -> None:
        self.dialled += 1
        if self.error:
            raise self.error

    def request(self) -> bytes | None:
        return b"request" if self.due else None

    async def take(self, certificate_der: bytes) -> None:
        self.taken.append(certificate_der)
        self.due = False

    def check_clock(self, head_time_s: float) -> None:
        if head_time_s == 1.0:
            raise ClockError


async def with_renewal(bench: WorkerBench, renewal: ScriptedRenewal) -> asyncio.Task[None]:
    bench.task.cancel()
    await asyncio.gather(bench.task, return_exceptions=True)
    bench.task = asyncio.create_task(
        bench.worker.stay(bench.network, bench._find, HEAD, bench.remembered.append, cast(Renewal, renewal))
    )
    await asyncio.sleep(0.1)
    return bench.task


def test_it_asks_for_its_certificate_at_once_and_then_every_hour() -> None:
    async def scene() -> None:
        async with WorkerBench() as bench:
            renewal = ScriptedRenewal()
            await with_renewal(bench, renewal)
            assert bench.head.only(Renew) == [Renew(b"request")]
            await bench.alive(3601)
            assert len(bench.head.only(Renew)) == 2
            await bench.head.tell(Renewed(b"certificate"))
            await bench.alive(2)
            assert renewal.taken == [b"certificate"]
            await bench.alive(3600)
            assert len(bench.head.only(Renew)) == 2
            assert renewal.dialled == 1, "the link stayed"

    run(scene())


@pytest.mark.parametrize("error", [RemovedError(), ClockError()])
def test_what_renewing_before_the_link_says_is_final(error: Exception) -> None:
    async def scene() -> None:
        async with WorkerBench() as bench:
            joins = len(bench.head.joins)
            task = await with_renewal(bench, ScriptedRenewal(error=error))
            async with asyncio.timeout(10):
                with pytest.raises(type(error)):
                    await task
            assert len(bench.head.joins) == joins

    run(scene())


def test_a_head_with_another_time_is_left() -> None:
    async def scene() -> None:
        async with WorkerBench() as bench:
            task = await with_renewal(bench, ScriptedRenewal(due=False))
            await bench.head.tell(Roll((), 1.0))
            async with asyncio.timeout(10):
                with pytest.raises(ClockError):
                    await task

    run(scene())
