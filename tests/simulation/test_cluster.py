"""Join, leave and lag through the real runtime, on a virtual clock with in-memory links."""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.helpers.arithmetic_engine import answer
from tests.helpers.simulated_cluster import SimulatedCluster, node_id
from tests.helpers.virtual_time import run
from vramancer_cli.cluster.reconcile import RETURN_S
from vramancer_cli.cluster.records import BACK_OFF_S, FAILURES
from vramancer_cli.errors import NodeLostError, NotReadyError

SMALL = 12_000
"""Bytes: two of the six layers, with KV and workspace, beside the ends."""
WHOLE = 60_000


def test_one_node_answers_alone() -> None:
    async def scene() -> None:
        async with SimulatedCluster(WHOLE) as cluster:
            await cluster.ready(1)
            assert await cluster.ask([1, 2, 3], 20) == answer([1, 2, 3], 20)

    run(scene())


def test_three_nodes_hold_what_none_holds_alone() -> None:
    async def scene() -> None:
        async with SimulatedCluster(SMALL) as cluster:
            await asyncio.sleep(5)
            with pytest.raises(NotReadyError, match=r"missing|more"):
                await cluster.ask([1], 1)
            cluster.join(1, SMALL)
            cluster.join(2, SMALL)
            await cluster.ready(3)
            assert await cluster.ask([5, 6, 7], 30) == answer([5, 6, 7], 30)
            counts = [cluster.engine.layer_tokens, *(w.engine.layer_tokens for w in cluster.workers.values())]
            assert all(counts)
            assert sum(counts) == 6 * (3 + 30 - 1)

    run(scene())


def test_sixteen_requests_at_different_times_with_lag_answer_as_alone() -> None:
    async def scene() -> None:
        rng = random.Random(7)
        async with SimulatedCluster(SMALL, latency_s=0.02) as cluster:
            cluster.join(1, SMALL)
            cluster.join(2, SMALL)
            await cluster.ready(3)

            async def one(number: int) -> None:
                await asyncio.sleep(rng.random() * 2)
                prompt = [rng.randrange(1000) for _ in range(rng.randrange(1, 60))]
                count = rng.randrange(1, 40)
                assert await cluster.ask(prompt, count, f"r{number}") == answer(prompt, count)

            await asyncio.gather(*(one(number) for number in range(16)))

    run(scene())


@pytest.mark.parametrize("how", ["kill", "leave", "partition"])
def test_when_what_is_left_cannot_hold_the_model_answers_end_honestly_and_it_comes_back_by_itself(how: str) -> None:
    async def scene() -> None:
        async with SimulatedCluster(SMALL) as cluster:
            cluster.join(1, SMALL)
            cluster.join(2, SMALL)
            await cluster.ready(3)
            running = asyncio.create_task(cluster.ask([1, 2], 200))
            await asyncio.sleep(0.5)
            assert not running.done()
            if how == "partition":
                cluster.hub.partition(node_id(2))
            else:
                await (cluster.kill(2) if how == "kill" else cluster.leave(2))
            async with asyncio.timeout(3 + RETURN_S + 0.5):
                with pytest.raises(NodeLostError, match=r"cannot hold the model\. .* more would do") as caught:
                    await running
            assert caught.value.node == "node-2"
            with pytest.raises(NotReadyError):
                await cluster.ask([1], 1)
            if how == "partition":
                cluster.hub.heal(node_id(2))
            else:
                cluster.join(3, SMALL)
            await cluster.ready(3)
            assert await cluster.ask([1, 2], 10) == answer([1, 2], 10)

    run(scene())


def test_a_worker_that_has_less_than_it_promised_is_planned_around() -> None:
    async def scene() -> None:
        async with SimulatedCluster(SMALL) as cluster:
            cluster.join(1, WHOLE, present_bytes=20_000)
            cluster.join(2, SMALL)
            await cluster.ready(3)
            assert cluster.coordinator.state.epoch > 1
            assert await cluster.ask([9], 10) == answer([9], 10)

    run(scene())


def test_a_worker_that_dies_of_every_load_is_left_alone_for_a_while() -> None:
    async def loading(cluster: SimulatedCluster) -> None:
        async with asyncio.timeout(30):
            while True:
                record = cluster.coordinator.state.nodes.get(node_id(1))
                if record is not None and record.stage is not None and record.stage.status == "loading":
                    return
                await asyncio.sleep(0.01)

    async def scene() -> None:
        async with SimulatedCluster(WHOLE, work_s=0.5) as cluster:
            for _ in range(FAILURES):
                cluster.join(1, WHOLE)
                await loading(cluster)
                await cluster.kill(1)
            cluster.join(1, WHOLE)
            await cluster.ready(1)
            await asyncio.sleep(BACK_OFF_S - 60)
            assert cluster.coordinator.state.nodes[node_id(1)].alive
            assert len(cluster.plan.stages) == 1, "it was planned with again"
            assert await cluster.ask([4], 10) == answer([4], 10)
            await cluster.ready(2, deadline_s=120)

    run(scene())


def test_a_newcomer_waits_until_nothing_runs() -> None:
    async def scene() -> None:
        async with SimulatedCluster(WHOLE) as cluster:
            await cluster.ready(1)
            running = asyncio.create_task(cluster.ask([4], 100))
            await asyncio.sleep(0.1)
            cluster.join(1, WHOLE)
            assert await running == answer([4], 100)
            await cluster.ready(2)
            assert await cluster.ask([4], 10) == answer([4], 10)

    run(scene())


def test_a_client_that_leaves_frees_its_blocks() -> None:
    async def scene() -> None:
        async with SimulatedCluster(WHOLE) as cluster:
            await cluster.ready(1)
            running = asyncio.create_task(cluster.ask([1], 200))
            await asyncio.sleep(0.3)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert cluster.generation.running == 0
            assert await cluster.ask([2], 5) == answer([2], 5)

    run(scene())


def test_the_same_scene_runs_the_same_way_twice() -> None:
    async def scene() -> float:
        async with SimulatedCluster(SMALL, latency_s=0.003) as cluster:
            cluster.join(1, SMALL)
            cluster.join(2, SMALL)
            await cluster.ready(3)
            await cluster.ask([1, 2, 3], 50)
            return asyncio.get_running_loop().time()

    assert run(scene()) == run(scene())
