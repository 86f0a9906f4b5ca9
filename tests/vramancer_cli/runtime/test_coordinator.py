from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.helpers.arithmetic_engine import answer, facts
from tests.helpers.pipeline_bench import SMALL, WHOLE
from tests.helpers.simulated_cluster import SimulatedCluster, node_id
from tests.helpers.virtual_time import run
from transport.errors import LinkClosedError, RemoteProtocolError
from vramancer_cli.cluster.records import QUARANTINE_S
from vramancer_cli.errors import ModelError, NodeLostError, NotReadyError, VramancerError
from vramancer_cli.runtime.coordinator import HEARTBEAT_S

Scene = Callable[[SimulatedCluster], Coroutine[Any, Any, None]]


def play(scene: Scene, head_bytes: int = SMALL, workers: int = 2, work_s: float = 0.01) -> None:
    """With workers 1, 2, ... that have just been switched on."""

    async def main() -> None:
        async with SimulatedCluster(head_bytes, work_s=work_s) as cluster:
            for number in range(1, workers + 1):
                cluster.join(number, SMALL)
            await scene(cluster)
        assert cluster.engine.used_bytes == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


# --- the head's own part --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ModelError("A tensor is missing."), RuntimeError("a bug")])
@pytest.mark.parametrize("head_bytes", [WHOLE, 1000], ids=["its stage", "the ends"])
def test_what_the_head_cannot_load_ends_it_with_that_error(error: Exception, head_bytes: int) -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        cluster.engine.loads_badly = error
        cluster.join(3, WHOLE)
        with pytest.raises(type(error), match=str(error)):
            await cluster.task
        with pytest.raises(NotReadyError, match="shutting down"):
            await cluster.ask([1], 1)

    play(scene, head_bytes, workers=0)


def test_a_head_with_less_than_it_thinks_plans_again_with_what_is_there() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        cluster.engine.present_bytes = SMALL
        await cluster.ready(3)
        cluster.check_memory()
        assert await cluster.ask([1, 2], 5) == answer([1, 2], 5)

    play(scene, WHOLE)


def test_a_head_without_room_for_layers_holds_the_ends_alone() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        cluster.join(1, WHOLE)
        await cluster.ready(1)
        assert cluster.plan.stages[0].node == node_id(1)
        cluster.check_memory()
        await cluster.kill(1)
        await asyncio.sleep(1)
        cluster.check_memory()
        cluster.join(2, WHOLE)
        await cluster.ready(1)
        cluster.check_memory()
        assert await cluster.ask([1, 2], 5) == answer([1, 2], 5)

    play(scene, 1000, workers=0)


def test_a_step_that_fails_on_the_head_is_tried_again_and_ends_who_was_in_it_twice() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await cluster.ready(3)
        epoch = cluster.plan.epoch
        running = asyncio.create_task(cluster.ask([1, 2], 100))
        for failures in (1, 2):
            await cluster.ready(3)
            await asyncio.sleep(0.5)
            assert cluster.plan.epoch == epoch + failures - 1
            assert not running.done()
            assert cluster.coordinator._pipeline is not None
            cluster.coordinator._pipeline._broke(node_id(0), ZeroDivisionError("one over nothing"))
        with pytest.raises(VramancerError, match="one over nothing"):
            await running
        await cluster.ready(3)
        assert cluster.plan.epoch == epoch + 2
        assert await cluster.ask([1, 2], 5) == answer([1, 2], 5)

    play(scene)


# --- starting and stopping ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loads_done", [0, 1, 2], ids=["assigned", "stages loaded", "ends loaded"])
@pytest.mark.parametrize("how", ["kill", "leave", "partition"])
def test_a_node_that_is_lost_while_the_plan_is_loaded_or_started(how: str, loads_done: int) -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        while cluster.coordinator.state.active_plan is None:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5 + loads_done)  # each load takes a second
        if how == "partition":
            cluster.hub.partition(node_id(2))
        else:
            await (cluster.kill(2) if how == "kill" else cluster.leave(2))
        cluster.join(3, SMALL)
        await cluster.ready(3, deadline_s=20)
        cluster.hub.heal(node_id(2))
        assert await cluster.ask([1, 2], 3) == answer([1, 2], 3)
        await asyncio.sleep(20)
        cluster.check_memory()

    play(scene, work_s=1.0)


def test_a_next_stage_that_the_head_cannot_dial_is_lost_and_the_ends_do_not_stay() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        while cluster.engine.used_bytes == 0:
            await asyncio.sleep(0.01)
        cluster.hub.leave(cluster.workers[1].network)  # nobody answers there any more
        while cluster.coordinator.state.nodes[node_id(1)].alive:
            await asyncio.sleep(0.01)
        assert not cluster.serving
        await asyncio.sleep(3)
        cluster.workers.pop(1).task.cancel()
        cluster.join(3, SMALL)
        await cluster.ready(3)
        cluster.check_memory()

    play(scene)


def test_the_ends_stay_for_the_next_plan_on_a_head_without_layers_too() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        worker = cluster.join(1, WHOLE)
        await asyncio.sleep(0.5)
        cluster.hub.leave(worker.network)
        while cluster.coordinator.state.nodes[node_id(1)].alive:
            await asyncio.sleep(0.01)
        assert cluster.coordinator.state.epoch == 2
        await asyncio.sleep(0.1)
        assert cluster.engine.used_bytes <= facts().ends_bytes("float32") + facts().workspace_bytes(32)

    play(scene, 1000, workers=0)


def test_a_plan_that_broke_while_its_ends_were_loaded_never_serves() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        served: list[int] = []
        serve = cluster.generation.serve
        cluster.generation.serve = lambda plan, *rest: (served.append(plan.epoch), serve(plan, *rest))[1]
        while not cluster.coordinator.state.stage_ready(node_id(2)):
            await asyncio.sleep(0.01)
        broken = cluster.plan.epoch
        await asyncio.sleep(0.5)  # in the middle of the ends
        await cluster.kill(2)
        cluster.join(3, SMALL)
        await cluster.ready(3)
        assert broken not in served
        assert cluster.plan.epoch in served

    play(scene, work_s=1.0)


def test_ending_gives_everything_back_and_ends_every_request() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await cluster.ready(3)
        running = asyncio.create_task(cluster.ask([1, 2], 100))
        await asyncio.sleep(0.5)
        cluster.task.cancel()
        with pytest.raises(NotReadyError, match="shutting down"):
            await running
        with pytest.raises(asyncio.CancelledError):
            await cluster.task

    play(scene)


def test_ending_in_the_middle_of_a_load_leaks_nothing() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        while cluster.coordinator.state.active_plan is None:
            await asyncio.sleep(0.01)

    play(scene, work_s=1.0)


# --- blame ----------------------------------------------------------------------------------------------------------


def test_garbage_on_a_data_link_quarantines_its_sender_but_a_late_end_of_one_loses_nobody() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await cluster.ready(3)
        cluster.coordinator.on_closed(node_id(2), LinkClosedError())
        cluster.coordinator.on_closed(node_id(2), None)
        await asyncio.sleep(3)
        assert cluster.serving
        assert cluster.plan.epoch == 1
        running = asyncio.create_task(cluster.ask([1, 2], 100))
        await asyncio.sleep(0.1)
        cluster.coordinator.on_closed(node_id(2), RemoteProtocolError("no magic"))
        await asyncio.sleep(0.1)
        assert not cluster.serving
        with pytest.raises(NodeLostError, match="'node-2' is quarantined: data link: no magic; what is left cannot"):
            await running
        quarantined_at = asyncio.get_running_loop().time()
        await cluster.ready(3, deadline_s=QUARANTINE_S + 5)
        assert asyncio.get_running_loop().time() - quarantined_at > QUARANTINE_S - 10
        assert await cluster.ask([1, 2], 100) == answer([1, 2], 100)

    play(scene)


def test_news_of_an_older_plan_breaks_nothing() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await cluster.ready(3)
        old_plan, old_pipeline = cluster.plan, cluster.coordinator._pipeline
        assert old_pipeline is not None
        await cluster.kill(2)
        cluster.join(3, SMALL)
        await cluster.ready(3)
        epoch = cluster.plan.epoch
        old_pipeline._broke(node_id(1), LinkClosedError())
        cluster.coordinator._link_broke(old_plan, node_id(1), LinkClosedError())
        cluster.coordinator._pipeline_failed(old_plan, node_id(1), LinkClosedError())
        cluster.coordinator._broke(old_plan, VramancerError("late"))
        await asyncio.sleep(3)
        assert cluster.serving
        assert cluster.plan.epoch == epoch

    play(scene)


def test_the_first_worker_is_not_blamed_for_the_second_ones_death() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await cluster.ready(3)
        running = asyncio.create_task(cluster.ask([1, 2], 100))
        await asyncio.sleep(0.5)
        await cluster.kill(2)
        with pytest.raises(NodeLostError) as caught:
            await running
        assert caught.value.node == "node-2"
        await asyncio.sleep(5)
        assert cluster.coordinator.state.nodes[node_id(1)].alive
        assert cluster.coordinator.state.nodes[node_id(1)].joined_at < 1, "it had to join again"

    play(scene)


# --- figures --------------------------------------------------------------------------------------------------------


def test_fresh_figures_are_of_now() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await cluster.ready(3)
        await asyncio.sleep(HEARTBEAT_S)
        await cluster.ask([1, 2, 3], 5)
        await cluster.coordinator.refresh()
        nodes = cluster.coordinator.state.nodes
        assert sum(record.load.layer_tokens for record in nodes.values()) == 6 * (3 + 5 - 1)
        assert nodes[node_id(0)].load.memory_used_bytes == cluster.engine.used_bytes
        assert nodes[node_id(0)].round_trip_s is None
        assert nodes[node_id(2)].round_trip_s == pytest.approx(0.002, abs=0.001)

    play(scene)


def test_every_worker_gets_the_status_now_and_then() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await asyncio.sleep(2.5)
        assert [member.worker.status for member in cluster.workers.values()] == [b"{}", b"{}"]

    play(scene)
