"""A random life of a simulated cluster, by seed: machines come, go, die and hang while requests never stop."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from tests.helpers.arithmetic_engine import answer, facts
from tests.helpers.simulated_cluster import SETTINGS, SimulatedCluster, node_id
from vramancer_cli.errors import (
    DoesNotFitError,
    NodeLostError,
    NotReadyError,
    QueueFullError,
    UsageError,
    VramancerError,
)
from vramancer_cli.planning.facts import DeviceCapacity
from vramancer_cli.planning.placement import place

LIFE_S = 60.0
CALM_S = 10.0
LATENCY_S = 0.002
WORK_S = 0.03
NUMBERS = (1, 2, 3, 4)
HEAD_BYTES = (1_000, 12_000, 12_000, 60_000)
"""For the ends only, two of the six layers, all of it."""
WORKER_BYTES = (500, 12_000, 12_000, 20_000, 60_000)
BLAME_S = 8.0
"""How long after it was harmed a node may be named as lost: silence, a broken link, and what was said of it."""
HONEST = ("cannot hold the model", "no other plan was ready", "data link")
"""What is said when an answer ends: nobody is left to hold the model, or it was in failing steps too often."""
QUEUE_S = 120.0
"""What a whole life's requests may take, one after the other, in a cluster that holds one context."""
ENDINGS = (NodeLostError, NotReadyError, QueueFullError)


class ClusterLife:
    """`run` lives one life and checks what must hold during and after it; `seen` counts what happened."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.asked: list[asyncio.Task[None]] = []
        self.partitioned: set[int] = set()
        self.walls: set[tuple[int, int]] = set()
        self.harmed_at: dict[str, float] = {}

    async def run(self) -> None:
        head_bytes = self.rng.choice(HEAD_BYTES)
        async with SimulatedCluster(head_bytes, work_s=WORK_S, latency_s=LATENCY_S) as cluster:
            self.cluster = cluster
            self._pause, cluster.generation.pause = cluster.generation.pause, self._paused
            async with asyncio.TaskGroup() as group:
                group.create_task(self._until_the_end(self._trouble, 0.2, 3.0))
                group.create_task(self._until_the_end(self._ask, 0.1, 1.0))
            await self._calm_down()
            await self._check_after()
        assert cluster.engine.used_bytes == 0, "the head kept memory after its end"

    async def _until_the_end(
        self, act: Callable[[], Coroutine[Any, Any, None]], shortest_s: float, longest_s: float
    ) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + LIFE_S
        while loop.time() < end:
            await act()
            assert not self.cluster.task.done(), "the head has ended"
            await asyncio.sleep(self.rng.uniform(shortest_s, longest_s))

    # --- trouble ------------------------------------------------------------------------------------------------

    async def _trouble(self) -> None:
        happenings = (
            self._join, self._join, self._join, self._leave, self._kill, self._partition, self._heal, self._heal,
            self._lag, self._slow_device, self._wall, self._quick_return, self._drain, self._part,
        )  # fmt: skip
        happening = self.rng.choice(happenings)
        if await happening():
            self.seen[happening.__name__.strip("_")] += 1

    async def _join(self) -> bool:
        free = [number for number in NUMBERS if number not in self.cluster.workers]
        if not free:
            return False
        limit_bytes = self.rng.choice(WORKER_BYTES)
        self.cluster.join(self.rng.choice(free), limit_bytes, int(limit_bytes * self.rng.choice((1.0, 1.0, 1.0, 0.6))))
        return True

    async def _leave(self) -> bool:
        number = self._some_worker()
        if number is not None:
            self._harmed(number)
            await self.cluster.leave(number)
        return number is not None

    async def _kill(self) -> bool:
        number = self._some_worker()
        if number is not None:
            self._harmed(number)
            await self.cluster.kill(number)
        return number is not None

    async def _quick_return(self) -> bool:
        """The same node again before the head can have noticed that it was gone."""
        number = self._some_worker()
        if number is None or number in self.partitioned:
            return False
        self._harmed(number)
        self.cluster.hub.partition(node_id(number))
        limit_bytes = self.cluster.workers[number].engine.limit_bytes
        await self.cluster.leave(number)
        self.cluster.join(number, limit_bytes)
        self.cluster.hub.heal(node_id(number))
        return True

    async def _drain(self) -> bool:
        number = self._some_worker()
        if number is None:
            return False
        self.asked.append(asyncio.create_task(self._drained(number)))
        return True

    async def _drained(self, number: int) -> None:
        """As `vramancer drain`, which ends in one of three ways; the node may die meanwhile."""
        try:
            await self.cluster.coordinator.drain(f"node-{number}")
        except (DoesNotFitError, NotReadyError, UsageError):
            self.seen["not drained"] += 1
        else:
            self.seen["drained"] += 1

    async def _part(self) -> bool:
        """As Ctrl-C, with all the patience that a worker has."""
        number = self._some_worker()
        if number is not None:
            self._harmed(number)
            worker = self.cluster.workers[number]
            await worker.worker.leave()
            self._harmed(number)
            if self.cluster.workers.get(number) is worker:
                await self.cluster.leave(number)
        return number is not None

    async def _partition(self) -> bool:
        number = self._some_worker()
        if number is not None:
            self._harmed(number)
            self.partitioned.add(number)
            self.cluster.hub.partition(node_id(number))
        return number is not None

    async def _heal(self) -> bool:
        if not self.partitioned:
            return False
        number = self.rng.choice(sorted(self.partitioned))
        self.partitioned.discard(number)
        self.cluster.hub.heal(node_id(number))
        return True

    async def _lag(self) -> bool:
        one, other = self.rng.sample((0, *NUMBERS), 2)
        self.cluster.hub.set_latency(node_id(one), node_id(other), self.rng.choice((0.0, LATENCY_S, 0.1)))
        return True

    async def _slow_device(self) -> bool:
        devices = [self.cluster.device, *(worker.device for worker in self.cluster.workers.values())]
        self.rng.choice(devices).work_s = self.rng.choice((0.001, WORK_S, WORK_S, 0.4))
        return True

    async def _wall(self) -> bool:
        """Two workers do not reach each other any more, or do again."""
        one, other = sorted(self.rng.sample(NUMBERS, 2))
        if (one, other) in self.walls:
            self.walls.discard((one, other))
            self.cluster.hub.join_again(node_id(one), node_id(other))
        else:
            self._harmed(one, other)
            self.walls.add((one, other))
            self.cluster.hub.separate(node_id(one), node_id(other))
        return True

    def _harmed(self, *numbers: int) -> None:
        for number in numbers:
            self.harmed_at[f"node-{number}"] = asyncio.get_running_loop().time()

    def _check_honesty(self, error: Exception) -> None:
        if isinstance(error, NodeLostError):
            assert any(part in str(error) for part in HONEST), f"an answer ended that could have gone on: {error}"

    async def _paused(self, error: VramancerError, **how: bool) -> None:
        """Between the coordinator and the generation: whoever is named has been harmed just now."""
        if isinstance(error, NodeLostError):
            ago_s = asyncio.get_running_loop().time() - self.harmed_at.get(error.node, -BLAME_S)
            assert ago_s < BLAME_S, f"{error.node} was blamed, {ago_s:.1f} s after it was harmed: {error}"
        await self._pause(error, **how)

    def _some_worker(self) -> int | None:
        return self.rng.choice(sorted(self.cluster.workers)) if self.cluster.workers else None

    # --- requests -----------------------------------------------------------------------------------------------

    async def _ask(self) -> None:
        prompt = [self.rng.randrange(1000) for _ in range(self.rng.randint(1, 60))]
        count = self.rng.randint(1, 40)
        patience_s = self.rng.uniform(0.0, 2.0) if self.rng.random() < 0.2 else None
        self.asked.append(asyncio.create_task(self._asked(prompt, count, patience_s)))

    async def _asked(self, prompt: list[int], count: int, patience_s: float | None) -> None:
        """A client, that hangs up when its patience ends."""
        try:
            async with asyncio.timeout(patience_s):
                tokens = await self.cluster.ask(prompt, count)
        except ENDINGS as error:
            self._check_honesty(error)
            self.seen[type(error).__name__] += 1
        except TimeoutError:
            self.seen["hung up"] += 1
        else:
            assert tokens == answer(prompt, count, self.cluster.layers), "a wrong answer"
            self.seen["answered"] += 1

    # --- afterwards ---------------------------------------------------------------------------------------------

    async def _calm_down(self) -> None:
        hub = self.cluster.hub
        for number in self.partitioned:
            hub.heal(node_id(number))
        for one in (0, *NUMBERS):
            for other in (0, *NUMBERS):
                hub.set_latency(node_id(one), node_id(other), LATENCY_S)
        for device in (self.cluster.device, *(worker.device for worker in self.cluster.workers.values())):
            device.work_s = WORK_S
        while any(record.resting for record in self.cluster.coordinator.state.nodes.values()):
            await asyncio.sleep(1.0)  # those that were lost too often while they loaded

    async def _check_after(self) -> None:
        if self._fits():
            await self.cluster.ready(deadline_s=CALM_S)
        async with asyncio.timeout(QUEUE_S):
            await asyncio.gather(*self.asked)
        assert self.cluster.generation.running == self.cluster.generation.waiting == 0
        await asyncio.sleep(CALM_S)
        assert self.cluster.serving == self._fits()  # one that came back meanwhile may be used again
        self.cluster.check_memory()
        await self._ask()
        await self.asked[-1]
        assert len(self.asked) == sum(
            self.seen[kind]
            for kind in ("answered", "hung up", "drained", "not drained", *(e.__name__ for e in ENDINGS))
        )

    def _fits(self) -> bool:
        """Whether the model fits into what the machines really have that are still there, and not drained."""
        records = self.cluster.coordinator.state.nodes
        device = self.cluster.engine.device_facts()
        present = {0: self.cluster.engine.present_bytes}
        present |= {
            number: worker.engine.present_bytes
            for number, worker in self.cluster.workers.items()
            if node_id(number) not in records or not records[node_id(number)].draining
        }
        nodes = [DeviceCapacity(node_id(number), "", device, count) for number, count in present.items()]
        try:
            place(facts(self.cluster.layers), nodes, node_id(0), SETTINGS, 1)
        except DoesNotFitError:
            return False
        return True
