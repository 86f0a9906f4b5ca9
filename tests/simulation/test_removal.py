"""`nodes remove` through the real runtime, on a virtual clock: while answers run, and while the node is away."""

from __future__ import annotations

import asyncio

import pytest

from tests.helpers.arithmetic_engine import answer
from tests.helpers.simulated_cluster import SimulatedCluster, node_id
from tests.helpers.virtual_time import run
from transport.errors import RemovedError, TrustError
from transport.inproc import InprocControlLink
from vramancer_cli.errors import NodeLostError, UsageError

SMALL = 12_000


async def ends_honestly(running: asyncio.Task[list[int]], whole: list[int]) -> None:
    """As when a node is lost: an error that names it, or the whole answer by other nodes; never a part as a whole."""
    try:
        assert await running == whole
    except NodeLostError as error:
        assert error.node == "node-2"


def test_removed_while_answers_run_it_is_gone_within_a_second_and_the_plan_goes_on_without_it() -> None:
    async def scene() -> None:
        async with SimulatedCluster(SMALL) as cluster:
            for number in (1, 2, 3):
                cluster.join(number, SMALL)
            await cluster.ready()
            assert node_id(2) in {stage.node for stage in cluster.plan.stages}
            running = [asyncio.create_task(cluster.ask([number, 2], 150)) for number in range(4)]
            await asyncio.sleep(0.5)
            assert not any(task.done() for task in running)
            removed = cluster.workers[2]
            assert await cluster.coordinator.remove("node-2") == node_id(2)
            async with asyncio.timeout(1.0):
                with pytest.raises(RemovedError):
                    await removed.task
            for other in (cluster.network, cluster.workers[1].network, cluster.workers[3].network):
                assert not [end for end in other._ends if end.node == node_id(2) and end.ended is None]
            async with asyncio.timeout(60):
                for number, task in enumerate(running):
                    await ends_honestly(task, answer([number, 2], 150))
            await cluster.ready()
            assert node_id(2) not in {stage.node for stage in cluster.plan.stages}
            assert await cluster.ask([7], 10) == answer([7], 10)
            assert removed.engine.used_bytes == 0
            del cluster.workers[2]
            cluster.check_memory()

    run(scene())


def test_the_others_have_no_data_link_with_it_even_if_it_goes_on_by_itself() -> None:
    """A hostile program does not obey: it keeps running, and dials the others."""

    async def scene() -> None:
        async with SimulatedCluster(SMALL) as cluster:
            for number in (1, 2):
                cluster.join(number, SMALL)
            await cluster.ready()
            rogue = cluster.workers[2].network
            await cluster.coordinator.remove(node_id(2))
            await asyncio.sleep(1.0)
            for target in (0, 1):
                with pytest.raises(TrustError):
                    await rogue.dial_data(
                        (cluster.workers[1].network.address if target else cluster.network.address,),
                        node_id(target),
                        lambda *_: None,
                    )
            assert not [e for e in rogue._ends if e.ended is None and not isinstance(e, InprocControlLink)]

    run(scene())


def test_one_that_is_away_finds_the_door_shut() -> None:
    async def scene() -> None:
        async with SimulatedCluster(SMALL) as cluster:
            cluster.join(1, SMALL)
            await asyncio.sleep(2)
            await cluster.kill(1)
            await asyncio.sleep(2)
            await cluster.coordinator.remove("node-1")
            with pytest.raises(RemovedError):
                await cluster.join(1, SMALL).task

    run(scene())


def test_the_master_and_strangers_are_not_removed() -> None:
    async def scene() -> None:
        async with SimulatedCluster(SMALL) as cluster:
            with pytest.raises(UsageError, match="master cannot be removed"):
                await cluster.coordinator.remove("node-0")
            with pytest.raises(UsageError, match="No node is called"):
                await cluster.coordinator.remove("node-9")

    run(scene())
