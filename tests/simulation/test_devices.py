"""Nodes with several devices, through the real runtime on a virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from tests.helpers.arithmetic_engine import ArithmeticEngine, answer
from tests.helpers.simulated_cluster import SimulatedCluster, node_id
from tests.helpers.virtual_time import run
from vramancer_cli.cluster import events
from vramancer_cli.errors import NotReadyError

SMALL = 12_000
"""Bytes: two of the six layers, with KV and workspace, beside the ends."""
WHOLE = 60_000


def engines(*limits_bytes: int) -> list[ArithmeticEngine]:
    return [ArithmeticEngine(limit_bytes, index=index) for index, limit_bytes in enumerate(limits_bytes)]


def test_two_devices_of_one_node_hand_over_without_a_link() -> None:
    async def scene() -> None:
        async with SimulatedCluster(SMALL) as cluster:
            worker = cluster.join_with(1, *engines(SMALL, SMALL))
            await cluster.ready(3)
            assert [stage.node for stage in cluster.plan.stages] == [node_id(0), node_id(1), node_id(1)]
            assert await cluster.ask([5, 6, 7], 30) == answer([5, 6, 7], 30)
            first, second = worker.engines
            assert first.handed_over >= 30, "each token went over"
            assert second.handed_over == 0
            assert first.layer_tokens == second.layer_tokens == 2 * (3 + 30 - 1)
            cluster.check_memory()

    run(scene())


def test_many_requests_over_two_nodes_of_two_devices_answer_as_alone() -> None:
    async def scene() -> None:
        async with SimulatedCluster(SMALL, latency_s=0.02) as cluster:
            for number in (1, 2):
                cluster.join_with(number, *engines(8_000, 8_000))
            await cluster.ready()
            assert len(cluster.plan.firsts()) < len(cluster.plan.stages)

            async def one(number: int) -> None:
                prompt = [number * 37 % 1000, *range(number)]
                assert await cluster.ask(prompt, 12 + number, f"r{number}") == answer(prompt, 12 + number)

            await asyncio.gather(*(one(number) for number in range(12)))
            cluster.check_memory()

    run(scene())


def test_a_device_that_refuses_its_load_makes_the_head_plan_again() -> None:
    """Its neighbour on the same node keeps its own limit, and gives back what it had loaded."""

    async def scene() -> None:
        async with SimulatedCluster(SMALL) as cluster:
            full = ArithmeticEngine(SMALL, index=0)
            lying = ArithmeticEngine(SMALL, present_bytes=100, index=1)
            cluster.join_with(1, full, lying)
            await asyncio.sleep(10)
            assert cluster.coordinator.state.nodes[node_id(1)].limits == (SMALL, 100)
            assert (full.used_bytes, lying.used_bytes) == (0, 0)
            with pytest.raises(NotReadyError):
                await cluster.ask([1], 1)
            cluster.join(2, SMALL)
            await cluster.ready(3)
            assert {(stage.node, stage.position) for stage in cluster.plan.stages} == {
                (node_id(n), 0) for n in range(3)
            }
            assert await cluster.ask([1, 2], 9) == answer([1, 2], 9)
            cluster.check_memory()

    run(scene())


@pytest.mark.parametrize("how", ["kill", "leave", "partition"])
def test_a_lost_node_loses_both_its_stages_at_once(how: str) -> None:
    async def scene() -> None:
        async with SimulatedCluster(SMALL) as cluster:
            cluster.join_with(1, *engines(SMALL, SMALL))
            await cluster.ready(3)
            running = asyncio.create_task(cluster.ask([1, 2], 200))
            await asyncio.sleep(0.5)
            assert not running.done()
            if how == "partition":
                cluster.hub.partition(node_id(1))
            else:
                await (cluster.kill(1) if how == "kill" else cluster.leave(1))
            await asyncio.sleep(1)
            assert not running.done()
            cluster.join(2, WHOLE)
            await cluster.ready()
            assert await running == answer([1, 2], 200)
            assert await cluster.ask([3], 5) == answer([3], 5)

    run(scene())


def test_a_load_that_was_let_go_ends_before_another_begins_on_any_device() -> None:
    """Models are built through switches of the process, so no two loads of a node may overlap."""

    async def scene() -> None:
        async with SimulatedCluster(SMALL) as cluster:
            worker = cluster.join_with(1, *engines(SMALL, SMALL))
            worker.devices[1].work_s = 5.0
            loading: list[bool] = []
            for engine in worker.engines:
                plain = engine.load_stage

                def watched(*arguments: object, plain: object = plain) -> object:
                    loading.append(True)
                    assert len(loading) == 1, "two loads at once"
                    try:
                        return plain(*arguments)
                    finally:
                        loading.pop()

                engine.load_stage = watched
            await asyncio.sleep(3)
            cluster.coordinator._note(events.ServingBroke(cluster.plan.epoch, "a change of mind"))
            await cluster.ready()
            assert await cluster.ask([3], 5) == answer([3], 5)
            cluster.check_memory()

    run(scene())
