"""Plans by measured speed, through the real runtime, on a virtual clock: they follow what is there, and never flap."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.helpers.arithmetic_engine import ArithmeticEngine, answer
from tests.helpers.simulated_cluster import SimulatedCluster, node_id
from tests.helpers.virtual_time import run
from transport.types import DeviceSpeed
from vramancer_cli.cluster.board import cluster_status
from vramancer_cli.cluster.reconcile import BUSY_SETTLE_S, RECONSIDER_S
from vramancer_cli.cluster.status import ClusterStatus

AMPLE = 400_000
"""Bytes: the whole model, with room for more contexts than are worth anything."""
SEEDS = range(int(os.environ.get("VRM_SEEDS", "2")))
NOISE = 0.1
"""What measurements waver by, either way."""

Scene = Callable[[SimulatedCluster], Coroutine[Any, Any, None]]


def speed(layer_ms: float) -> DeviceSpeed:
    return DeviceSpeed(layer_ms / 1000, 1e18)


def engine(layer_ms: float, limit_bytes: int = AMPLE) -> ArithmeticEngine:
    made = ArithmeticEngine(limit_bytes)
    made.speed = speed(layer_ms)
    return made


def play(scene: Scene, *workers_ms: float, head_ms: float, latency_s: float = 0.001, work_s: float = 0.01) -> None:
    async def main() -> None:
        async with SimulatedCluster(AMPLE, work_s=work_s, latency_s=latency_s, head_speed=speed(head_ms)) as cluster:
            for number, layer_ms in enumerate(workers_ms, start=1):
                cluster.join_with(number, engine(layer_ms))
            await cluster.ready()
            await scene(cluster)

    run(main())


def holding(cluster: SimulatedCluster) -> set[str]:
    return {stage.node for stage in cluster.plan.stages}


def status(cluster: SimulatedCluster) -> ClusterStatus:
    figures: dict[str, Any] = {"cluster": "", "cluster_id": "", "version": "", "uptime_s": 0.0, "api_url": ""}
    counts = {"running": 0, "waiting": 0, "tokens_per_s": 0.0}
    now = asyncio.get_running_loop().time()
    return cluster_status(cluster.coordinator.state, **figures, **counts, now=now)


async def asking_for(cluster: SimulatedCluster, seconds: float, rng: random.Random) -> None:
    """One after the other, now and then with a pause; every answer is right."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + seconds
    while loop.time() < end_s:
        prompt, count = [rng.randrange(100) for _ in range(rng.randint(1, 20))], rng.randint(1, 60)
        assert await cluster.ask(prompt, count, f"r{loop.time()}") == answer(prompt, count)
        await asyncio.sleep(rng.choice((0.0, 0.0, 1.0, 4.0)))


async def wavering(cluster: SimulatedCluster, layer_ms: dict[int, float], rng: random.Random) -> None:
    """Each machine says again and again what its layers take, and it is never quite the same."""
    while True:
        engines = {0: cluster.engine, **{number: member.engine for number, member in cluster.workers.items()}}
        for number, one in engines.items():
            if one.layer_tokens:
                one.layer_s = layer_ms[number] / 1000 * rng.uniform(1 - NOISE, 1 + NOISE)
        await asyncio.sleep(0.7)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_never_flaps_whatever_the_noise(seed: int) -> None:
    """Minutes of traffic on machines that are alike, or nearly: after the first measurements nothing moves."""
    rng = random.Random(seed)
    layer_ms = {number: 5 * rng.choice((1.0, 1.02, 1.08, 1.5, 4.0)) for number in range(4)}

    async def scene(cluster: SimulatedCluster) -> None:
        noise = asyncio.create_task(wavering(cluster, layer_ms, rng))
        await asking_for(cluster, 4 * RECONSIDER_S, rng)
        settled = cluster.plan.epoch
        await asking_for(cluster, 300.0, rng)
        noise.cancel()
        assert cluster.plan.epoch == settled, f"seed {seed}: it moved"

    told = {number: ms * rng.uniform(0.9, 1.1) for number, ms in layer_ms.items()}
    play(scene, told[1], told[2], told[3], head_ms=told[0], work_s=0.05)


def test_a_much_faster_node_that_joins_while_requests_run_takes_layers_and_no_token_changes() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        prompts = [[number, 2] for number in range(3)]
        running = [asyncio.create_task(cluster.ask(prompt, 200, f"r{prompt}")) for prompt in prompts]
        await asyncio.sleep(1.0)
        cluster.join_with(1, engine(1))
        await asyncio.sleep(BUSY_SETTLE_S / 2)
        assert holding(cluster) == {node_id(0)}, "too soon: others may come"
        while node_id(1) not in holding(cluster):
            await asyncio.sleep(0.1)
        assert not any(task.done() for task in running)
        for prompt, task in zip(prompts, running, strict=True):
            assert await task == answer(prompt, 200)

    play(scene, head_ms=40, work_s=0.1)


def test_one_that_gains_nothing_stays_in_reserve_and_is_told_why() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        before = cluster.plan.epoch
        cluster.join_with(1, engine(5))
        await asyncio.sleep(5.0)
        await asking_for(cluster, 60.0, random.Random(1))
        assert cluster.plan.epoch == before
        nodes = {node.name: node for node in status(cluster).nodes}
        assert nodes["node-1"].state == "spare"
        assert nodes["node-1"].why.startswith("in reserve: would make a token slower: 30 ms -> ")

    play(scene, head_ms=5)


def test_what_is_told_as_predicted_is_what_was_measured_of_layers_and_trips() -> None:
    async def scene(cluster: SimulatedCluster) -> None:
        await asyncio.sleep(3.0)
        predicted = status(cluster).predicted_tokens_per_s
        assert predicted is not None
        assert holding(cluster) == {node_id(1)}
        assert round(1 / predicted, 3) == round(6 * 0.002 + 2 * 0.05, 3)

    play(scene, 2, head_ms=40, latency_s=0.05)


def test_a_node_that_becomes_slow_gives_its_layers_up() -> None:
    """Another program computes there now: by its own measurements, and only after a while."""

    async def scene(cluster: SimulatedCluster) -> None:
        assert holding(cluster) == {node_id(1)}
        cluster.workers[1].engine.layer_s = 0.002
        cluster.engine.layer_s = 0.010
        await asking_for(cluster, 2 * RECONSIDER_S, random.Random(2))
        assert holding(cluster) == {node_id(1)}
        cluster.workers[1].engine.layer_s = 0.200
        await asking_for(cluster, 3 * RECONSIDER_S, random.Random(3))
        assert holding(cluster) == {node_id(0)}

    play(scene, 2, head_ms=10)
