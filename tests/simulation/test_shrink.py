"""Memory that another program takes, or a device that goes, through the real runtime, on a virtual clock."""

from __future__ import annotations

import asyncio

from tests.helpers.arithmetic_engine import answer
from tests.helpers.simulated_cluster import SimulatedCluster, node_id
from tests.helpers.virtual_time import run
from vramancer_cli.cluster.shrink import GROW_S, SHRINK_S

ROOMY = 24_000
"""Two of three such nodes hold the model."""


async def whole(running: list[asyncio.Task[list[int]]]) -> None:
    for number, task in enumerate(running):
        assert await task == answer([number, 2], 200)


def asking(cluster: SimulatedCluster) -> list[asyncio.Task[list[int]]]:
    return [asyncio.create_task(cluster.ask([number, 2], 200, f"r{number}")) for number in range(3)]


def holding(cluster: SimulatedCluster) -> set[str]:
    return {stage.node for stage in cluster.plan.stages}


def test_a_node_whose_memory_is_taken_hands_layers_over_and_gets_them_back_when_there_is_room() -> None:
    async def main() -> None:
        async with SimulatedCluster(ROOMY, work_s=0.05) as cluster:
            for number in (1, 2):
                cluster.join(number, ROOMY)
            await cluster.ready(3)
            running = asking(cluster)
            await asyncio.sleep(1.0)
            cluster.workers[1].engine.holdable_bytes = 5000
            await asyncio.sleep(SHRINK_S + 3.0)
            await cluster.ready(2)
            assert holding(cluster) == {node_id(0), node_id(2)}
            assert cluster.workers[1].engine.used_bytes <= 5000
            assert not any(task.done() for task in running)
            await whole(running)
            cluster.workers[1].engine.holdable_bytes = ROOMY
            await asyncio.sleep(GROW_S + 5.0)
            await cluster.ready(3)
            cluster.check_memory()

    run(main())


def test_a_device_that_has_gone_takes_no_layers_with_it() -> None:
    async def main() -> None:
        async with SimulatedCluster(ROOMY, work_s=0.05) as cluster:
            for number in (1, 2):
                cluster.join(number, ROOMY)
            await cluster.ready(3)
            running = asking(cluster)
            await asyncio.sleep(1.0)
            cluster.workers[2].engine.holdable_bytes = 0
            await asyncio.sleep(SHRINK_S + 3.0)
            await cluster.ready(2)
            assert node_id(2) not in holding(cluster)
            await whole(running)

    run(main())


def test_where_nobody_can_take_the_layers_all_goes_on_as_it_was() -> None:
    async def main() -> None:
        async with SimulatedCluster(12_000, work_s=0.05) as cluster:
            for number in (1, 2):
                cluster.join(number, 12_000)
            await cluster.ready(3)
            epoch, running = cluster.plan.epoch, asking(cluster)
            cluster.workers[1].engine.holdable_bytes = 3000
            await asyncio.sleep(SHRINK_S + 5.0)
            assert cluster.serving and cluster.plan.epoch == epoch
            await whole(running)

    run(main())
