"""Answers that outlive the nodes that they began on, through the real runtime, on a virtual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import pytest

from tests.helpers.arithmetic_engine import ArithmeticEnds, ArithmeticStage, answer
from tests.helpers.simulated_cluster import SimulatedCluster, node_id
from tests.helpers.virtual_time import run
from transport.messages import Step
from vramancer_cli.cluster.reconcile import RETURN_S
from vramancer_cli.errors import (
    DoesNotFitError,
    NodeLostError,
    NonFiniteError,
    NotReadyError,
    UsageError,
    VramancerError,
)
from vramancer_cli.runtime.generation import WAIT_S
from vramancer_cli.runtime.session import MOST_FAILURES
from vramancer_cli.runtime.worker import LEAVE_S

SMALL = 12_000
"""Bytes: two of the six layers, with KV and workspace, beside the ends."""
ROOMY = 24_000
"""Two of three such nodes hold the model."""
COUNT = 150

Scene = Callable[[SimulatedCluster], Coroutine[Any, Any, None]]


def play(
    scene: Scene, *limits_bytes: int, head_bytes: int = ROOMY, work_s: float = 0.01, stages: int | None = None
) -> None:
    async def main() -> None:
        async with SimulatedCluster(head_bytes, work_s=work_s) as cluster:
            for number, limit_bytes in enumerate(limits_bytes, start=1):
                cluster.join(number, limit_bytes)
            await cluster.ready(stages or len(limits_bytes) + 1)
            await scene(cluster)
        assert cluster.engine.used_bytes == 0

    run(main())


def asking(cluster: SimulatedCluster, count: int = 3) -> list[asyncio.Task[list[int]]]:
    return [asyncio.create_task(cluster.ask([number, 2], COUNT, f"r{number}")) for number in range(count)]


async def whole(running: list[asyncio.Task[list[int]]]) -> None:
    for number, task in enumerate(running):
        assert await task == answer([number, 2], COUNT)


async def hurt(cluster: SimulatedCluster, number: int, how: str) -> None:
    """`leave` is the end of a process that hands nothing over."""
    if how == "partition":
        cluster.hub.partition(node_id(number))
    else:
        await (cluster.kill(number) if how == "kill" else cluster.leave(number))


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("how", ["kill", "leave", "partition"])
def test_answers_go_on_without_a_lost_node_and_only_what_moved_is_loaded(how: str, number: int) -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        running, loop = asking(cluster), asyncio.get_running_loop()
        await asyncio.sleep(0.5)
        assert cluster.workers[number].engine.layer_tokens > 0
        loaded, lost_layers = _loaded(cluster, without=number), len(cluster.plan.stages[number].layers)
        lost_s = loop.time()
        await hurt(cluster, number, how)
        await cluster.ready(2)
        assert loop.time() - lost_s < 3.6
        moved = _loaded(cluster, without=number) - loaded
        assert moved < 6 if how == "partition" else moved <= lost_layers + 1, "the rest was loaded again"
        assert not any(task.done() for task in running)
        await whole(running)

    play(scene, ROOMY, ROOMY)


def _loaded(cluster: SimulatedCluster, without: int) -> int:
    others = [worker.engine for number, worker in cluster.workers.items() if number != without]
    return sum(engine.layers_loaded for engine in (cluster.engine, *others))


def test_whoever_has_waited_and_whoever_comes_meanwhile_is_served_too() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        running = asking(cluster, 30)
        await asyncio.sleep(0.3)
        await cluster.kill(2)
        await asyncio.sleep(0.005)
        late = asyncio.create_task(cluster.ask([7, 7], 20))
        await asyncio.sleep(0)
        assert not cluster.serving
        assert cluster.generation.running == 0
        assert cluster.generation.waiting == 31
        await whole(running)
        assert await late == answer([7, 7], 20)

    play(scene, ROOMY, ROOMY)


@pytest.mark.parametrize("between_s", [0.0, 0.3, 0.9, 2.5], ids=["at once", "planned", "loading", "served again"])
def test_two_are_lost_one_after_the_other(between_s: float) -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        running = asking(cluster)
        await asyncio.sleep(12)
        assert not any(task.done() for task in running)
        await cluster.kill(1)
        await asyncio.sleep(between_s)
        await cluster.kill(3)
        await whole(running)
        assert {stage.node for stage in cluster.plan.stages} <= {node_id(0), node_id(2)}

    play(scene, ROOMY, ROOMY, ROOMY, work_s=0.2)


def test_the_lost_one_comes_back_in_the_middle_of_the_recovery() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        running = asking(cluster)
        await asyncio.sleep(12)
        await cluster.kill(2)
        await asyncio.sleep(0.3)
        cluster.join(2, ROOMY)
        await whole(running)
        await cluster.ready(3)

    play(scene, ROOMY, ROOMY, work_s=0.2)


def test_a_link_that_only_broke_ends_no_answer_where_nobody_can_be_spared_and_nothing_is_loaded_again() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        running = asking(cluster)
        await asyncio.sleep(0.5)
        loaded = _loaded(cluster, without=0)
        cluster.hub.partition(node_id(2))
        await asyncio.sleep(3.5)
        assert not cluster.serving
        cluster.hub.heal(node_id(2))
        await whole(running)
        assert _loaded(cluster, without=0) == loaded

    play(scene, SMALL, SMALL, head_bytes=SMALL)


def test_who_asks_while_nothing_serves_waits_and_is_refused_after_a_while_but_what_has_begun_is_not() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        running, loop = asking(cluster), asyncio.get_running_loop()
        await asyncio.sleep(30)
        began_s = loop.time()
        for worker in cluster.workers.values():
            worker.device.work_s = 45.0  # what moves takes long to load
        await cluster.kill(2)
        late = asyncio.create_task(cluster.ask([7, 7], 20))
        with pytest.raises(NotReadyError):
            await late
        assert loop.time() - began_s == pytest.approx(WAIT_S, abs=0.5)
        with pytest.raises(NotReadyError):
            await cluster.ask([8], 20)
        for worker in cluster.workers.values():
            worker.device.work_s = 0.01
        await whole(running)

    play(scene, ROOMY, ROOMY, work_s=0.3)


def test_an_answer_at_which_stages_fail_is_not_tried_for_ever_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As one whose prompt makes a device run out of memory."""
    execute = ArithmeticStage.execute

    def failing(self: ArithmeticStage, step: Step, hidden: list[int]) -> list[int]:
        if any(value == 667 for value in hidden):
            raise VramancerError("out of memory")
        return execute(self, step, hidden)

    monkeypatch.setattr(ArithmeticStage, "execute", failing)

    async def scene(cluster: SimulatedCluster) -> None:
        running = asking(cluster)
        await asyncio.sleep(0.5)
        epoch = cluster.plan.epoch
        with pytest.raises(NodeLostError, match="out of memory"):
            await cluster.ask([666], 5)
        await whole(running)
        assert 1 < cluster.plan.epoch - epoch <= 2 * (MOST_FAILURES + 1)

    play(scene, ROOMY, ROOMY, head_bytes=1000, stages=2)


def test_an_answer_at_which_the_head_itself_fails_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose values are not finite, or for whose prompt the head has no memory."""
    embed = ArithmeticEnds.embed

    def failing(self: ArithmeticEnds, step: Step, token_ids: Sequence[int]) -> list[int]:
        if 666 in token_ids:
            raise NonFiniteError
        return embed(self, step, token_ids)

    monkeypatch.setattr(ArithmeticEnds, "embed", failing)

    async def scene(cluster: SimulatedCluster) -> None:
        running = asking(cluster)
        await asyncio.sleep(0.5)
        with pytest.raises(VramancerError, match="not finite") as caught:
            await cluster.ask([666], 5)
        assert not isinstance(caught.value, NodeLostError | NotReadyError)
        await whole(running)
        assert all(record.alive for record in cluster.coordinator.state.nodes.values())

    play(scene, ROOMY, ROOMY, head_bytes=1000, stages=2)


# --- joining ----------------------------------------------------------------------------------------------------------


def test_one_that_joins_while_requests_wait_takes_layers_and_no_token_changes() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        before = cluster.plan
        prompt = list(range(60))
        running = [asyncio.create_task(cluster.ask([n, *prompt], COUNT)) for n in range(40)]
        await asyncio.sleep(1.0)
        assert cluster.generation.running and cluster.generation.waiting
        cluster.join(3, 60_000)
        while cluster.plan.epoch == before.epoch:
            await asyncio.sleep(0.1)
        await cluster.ready()
        assert cluster.plan.block_count > before.block_count
        assert not all(task.done() for task in running)
        for n, task in enumerate(running):
            assert await task == answer([n, *prompt], COUNT)

    play(scene, SMALL, SMALL, head_bytes=SMALL, work_s=0.05)


# --- handing layers over --------------------------------------------------------------------------------------------


def test_a_drained_node_hands_its_layers_over_and_may_go() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        running = asking(cluster)
        await asyncio.sleep(0.5)
        assert await cluster.coordinator.drain("node-1") == node_id(1)
        assert cluster.serving
        assert {stage.node for stage in cluster.plan.stages} == {node_id(0), node_id(2)}
        await asyncio.sleep(0.1)
        assert cluster.workers[1].engine.used_bytes == 0
        assert not any(task.done() for task in running)
        epoch = cluster.plan.epoch
        await cluster.kill(1)
        await whole(running)
        await asyncio.sleep(5)
        assert cluster.plan.epoch == epoch, "its end changed something"

    play(scene, ROOMY, ROOMY)


def test_nobody_is_drained_who_cannot_be_spared_and_neither_is_the_master() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        running = asking(cluster)
        await asyncio.sleep(0.5)
        with pytest.raises(DoesNotFitError, match="more would do"):
            await cluster.coordinator.drain("node-1")
        with pytest.raises(UsageError, match="master"):
            await cluster.coordinator.drain("node-0")
        with pytest.raises(UsageError):
            await cluster.coordinator.drain("nobody")
        assert cluster.plan.epoch == 1
        await whole(running)

    play(scene, SMALL, SMALL, head_bytes=SMALL)


def test_a_worker_that_ends_hands_its_layers_over_first() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        running = asking(cluster)
        await asyncio.sleep(0.5)
        leaving = cluster.workers[1].worker
        await leaving.leave()
        assert leaving.layers is None
        assert cluster.serving
        assert len(cluster.plan.stages) == 2
        assert not any(task.done() for task in running)
        await cluster.leave(1)
        await whole(running)

    play(scene, ROOMY, ROOMY)


@pytest.mark.parametrize("head_bytes", [SMALL, 60_000], ids=["nobody can take them", "it holds none"])
def test_a_worker_that_has_nothing_to_hand_over_may_go_at_once(head_bytes: int) -> None:
    async def scene() -> None:
        async with SimulatedCluster(head_bytes) as cluster:
            cluster.join(1, 500 if head_bytes > SMALL else SMALL)
            cluster.join(2, 500 if head_bytes > SMALL else SMALL)
            await cluster.ready()
            began_s = asyncio.get_running_loop().time()
            await cluster.workers[1].worker.leave()
            assert asyncio.get_running_loop().time() - began_s < 0.1

    run(scene())


def test_a_worker_whose_head_does_not_answer_goes_after_a_while() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        cluster.hub.partition(node_id(1))
        began_s = asyncio.get_running_loop().time()
        await cluster.workers[1].worker.leave()
        assert asyncio.get_running_loop().time() - began_s <= LEAVE_S
        assert RETURN_S < LEAVE_S

    play(scene, ROOMY, ROOMY)
