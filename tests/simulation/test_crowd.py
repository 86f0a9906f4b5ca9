"""Two hundred nodes on one thread: most layers move again and again, and every accepted request ends exactly once."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter

import pytest

from tests.helpers.arithmetic_engine import answer
from tests.helpers.cluster_life import ENDINGS
from tests.helpers.simulated_cluster import SimulatedCluster, node_id
from tests.helpers.virtual_time import run

NODES = 200
LAYERS = 12
REQUESTS = 30
TOKENS = 25
LIMIT_BYTES = 20_000
HEAD_BYTES = 1_000
"""The ends only: no layer is without a worker."""
LIFE_S = 12.0
READY_S = 30.0
SEEDS = int(os.environ.get("VRM_CROWDS", "1"))


async def live(seed: int) -> Counter[str]:
    """Every half second something happens to one of those that are needed; the model always fits into what is left."""
    rng, seen, loop = random.Random(seed), Counter[str](), asyncio.get_running_loop()
    async with SimulatedCluster(HEAD_BYTES, layers=LAYERS, work_s=0.02) as cluster:
        for number in range(1, NODES + 1):
            cluster.join(number, LIMIT_BYTES)
        await cluster.ready(deadline_s=READY_S)
        stages = len(cluster.plan.stages)
        asked = [asyncio.create_task(asking(cluster, number, seen)) for number in range(REQUESTS)]
        until = loop.time() + LIFE_S
        while loop.time() < until:
            await hurt(cluster, rng, seen)
            await asyncio.sleep(0.5)
        for number in range(1, NODES + 1):
            cluster.hub.heal(node_id(number))
        async with asyncio.timeout(600):
            await asyncio.gather(*asked)
        await cluster.ready(deadline_s=READY_S)
        assert cluster.generation.running == cluster.generation.waiting == 0
        assert len(cluster.plan.stages) == stages > 3
        cluster.check_memory()
    return seen


async def hurt(cluster: SimulatedCluster, rng: random.Random, seen: Counter[str]) -> None:
    plan = cluster.coordinator.state.active_plan
    needed = [n for n in cluster.workers if plan is not None and any(s.node == node_id(n) for s in plan.stages)]
    if not needed:
        return
    how, number = rng.choice(("kill", "leave", "cut", "partition", "garbage")), rng.choice(needed)
    seen[how] += 1
    if how == "kill":
        await cluster.kill(number)
    elif how == "leave":
        await cluster.leave(number)
    elif how == "garbage":
        cluster.coordinator._members.quarantine(node_id(number), "no magic")
    else:
        cluster.hub.partition(node_id(number))
        asyncio.get_running_loop().call_later(0.3 if how == "cut" else 6.0, cluster.hub.heal, node_id(number))


async def asking(cluster: SimulatedCluster, number: int, seen: Counter[str]) -> None:
    """`ask` checks that an answer ends once and no more."""
    await asyncio.sleep(number * LIFE_S / REQUESTS)
    try:
        tokens = await cluster.ask([number, 2, 3], TOKENS)
    except ENDINGS as error:
        seen[type(error).__name__] += 1
    else:
        assert tokens == answer([number, 2, 3], TOKENS, LAYERS), "a wrong answer"
        seen["answered"] += 1


FIRST = int(os.environ.get("VRM_SEED", "0"))


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_two_hundred_nodes(seed: int) -> None:
    seen = run(live(seed))
    assert sum(seen[kind] for kind in ("answered", *(error.__name__ for error in ENDINGS))) == REQUESTS
    assert seen["answered"] >= REQUESTS - 3, f"the model always fitted: {seen}"
    assert min(seen[how] for how in ("kill", "leave", "cut", "partition", "garbage")) > 0
