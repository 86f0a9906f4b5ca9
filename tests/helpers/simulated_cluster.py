"""A whole cluster in one thread: the real coordinator, workers, pipeline and generation over an in-memory network."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.arithmetic_engine import REF, ArithmeticEngine, LoopDevice, facts
from transport.inproc import InprocHub, InprocNetwork
from transport.messages import PROTOCOL_MAJOR, PROTOCOL_MINOR, Hello, Plan
from transport.types import Address, DeviceSpeed, NodeFacts, NodeId, OfferedDevice, Versions
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.planning.facts import PlanSettings
from vramancer_cli.planning.plan import held_bytes
from vramancer_cli.runtime.contracts import GenerationRequest
from vramancer_cli.runtime.coordinator import Coordinator
from vramancer_cli.runtime.generation import Generation
from vramancer_cli.runtime.local_devices import LocalDevice
from vramancer_cli.runtime.worker import Worker

VERSIONS = Versions("0", "0", "0")
SETTINGS = PlanSettings(dtype="float32", context_tokens=256, block_tokens=16, max_step_tokens=32)


def node_id(number: int) -> NodeId:
    return f"{number:032x}"


def hello(number: int) -> Hello:
    return Hello(PROTOCOL_MAJOR, PROTOCOL_MINOR, VERSIONS, node_id(number), f"node-{number}", "control")


def node_facts(number: int, *engines: ArithmeticEngine) -> NodeFacts:
    devices = tuple(OfferedDevice(engine.device_facts(), engine.limit_bytes, engine.speed) for engine in engines)
    addresses = (Address(node_id(number), 1),)
    return NodeFacts(node_id(number), f"node-{number}", "test", devices, addresses, VERSIONS)


class SimulatedHub(InprocHub):
    """Also with walls between two nodes that both reach the head, as between two networks."""

    def __init__(self, latency_s: float) -> None:
        super().__init__(latency_s)
        self._walls: set[frozenset[NodeId]] = set()

    def separate(self, one: NodeId, other: NodeId) -> None:
        """Links between them break (as TCP does when nothing is acknowledged), and no new ones come to be."""
        for pipe in self._pipes:
            if {pipe.source, pipe.target} == {one, other}:
                pipe.reset()
        # After the ends of those links have arrived.
        asyncio.get_running_loop().call_soon(self._walls.add, frozenset((one, other)))

    def join_again(self, one: NodeId, other: NodeId) -> None:
        self._walls.discard(frozenset((one, other)))

    def separated(self, source: NodeId, target: NodeId) -> bool:
        return frozenset((source, target)) in self._walls or super().separated(source, target)


@dataclass
class SimulatedWorker:
    number: int
    engines: tuple[ArithmeticEngine, ...]
    devices: tuple[LoopDevice, ...]
    worker: Worker
    network: InprocNetwork
    task: asyncio.Task[None]

    @property
    def engine(self) -> ArithmeticEngine:
        return self.engines[0]

    @property
    def device(self) -> LoopDevice:
        return self.devices[0]


class SimulatedCluster:
    """Node 0 is the head. Use as an async context manager inside virtual_time.run."""

    def __init__(
        self,
        head_limit_bytes: int,
        layers: int = 6,
        work_s: float = 0.01,
        latency_s: float = 0.001,
        head_speed: DeviceSpeed | None = None,
    ) -> None:
        self.layers = layers
        self.work_s = work_s
        self.hub = SimulatedHub(latency_s)
        self.engine = ArithmeticEngine(head_limit_bytes)
        self.engine.speed = head_speed
        self.workers: dict[int, SimulatedWorker] = {}

    async def __aenter__(self) -> SimulatedCluster:
        self.device = LoopDevice(self.work_s)
        self.generation = Generation("arithmetic", Path(), SETTINGS.context_tokens, 0, self._activity)
        self.coordinator = Coordinator(
            facts=node_facts(0, self.engine),
            cluster="simulation",
            model=facts(self.layers),
            settings=SETTINGS,
            folder=Path(),
            devices=(LocalDevice(self.engine, self.device),),
            generation=self.generation,
            share_status=lambda: b"{}",
        )
        address = Address(node_id(0), 1)
        self.network = self.hub.network(hello(0), address, self.coordinator.accept, self.coordinator)
        self.task = asyncio.create_task(self.coordinator.run(self.network), name="head")
        return self

    async def __aexit__(self, *_: object) -> None:
        for number in list(self.workers):
            await self.leave(number)
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.network.close()

    def _activity(self) -> None:
        self.coordinator.activity()

    def join(self, number: int, limit_bytes: int, present_bytes: int | None = None) -> SimulatedWorker:
        return self.join_with(number, ArithmeticEngine(limit_bytes, present_bytes))

    def join_with(self, number: int, *engines: ArithmeticEngine) -> SimulatedWorker:
        """A node with a device for each engine."""
        devices = tuple(LoopDevice(self.work_s) for _ in engines)
        local = tuple(LocalDevice(engine, device) for engine, device in zip(engines, devices, strict=True))
        worker = Worker(lambda: node_facts(number, *engines), local)

        async def no_control(_link: object) -> None:
            raise AssertionError("nobody dials a worker's control port")

        address = Address(node_id(number), 1)
        network = self.hub.network(hello(number), address, no_control, worker)

        async def head() -> Sequence[Address]:
            return (Address(node_id(0), 1),)

        task = asyncio.create_task(worker.stay(network, head, node_id(0), lambda _: None), name=f"worker-{number}")
        self.workers[number] = SimulatedWorker(number, engines, devices, worker, network, task)
        return self.workers[number]

    async def leave(self, number: int) -> None:
        """As Ctrl-C on the worker."""
        member = self.workers.pop(number)
        member.task.cancel()
        await asyncio.gather(member.task, return_exceptions=True)
        await member.network.close()

    async def kill(self, number: int) -> None:
        """As kill -9: its links reset."""
        self.hub.kill(node_id(number))
        member = self.workers.pop(number)
        member.task.cancel()
        await asyncio.gather(member.task, return_exceptions=True)

    async def ready(self, stages: int | None = None, deadline_s: float = 60.0) -> None:
        """Until the model is served, by `stages` stages if they are given."""
        async with asyncio.timeout(deadline_s):
            while not (self.serving and stages in (None, len(self.plan.stages))):
                await asyncio.sleep(0.05)

    @property
    def plan(self) -> Plan:
        plan = self.coordinator.state.active_plan
        assert plan is not None
        return plan

    @property
    def serving(self) -> bool:
        state = self.coordinator.state
        return state.active_plan is not None and state.serving_epoch == state.active_plan.epoch and not state.broken

    async def ask(self, prompt: Sequence[int], count: int, request: str = "r") -> list[int]:
        """The whole answer; AssertionError if it ends without saying why, or goes on after its end."""
        tokens: list[int] = []
        ends = 0
        question = GenerationRequest(request, tuple(prompt), Sampling(temperature=0.0), count)
        async for item in self.generation.generate(question):
            assert not ends, "an answer went on after its end"
            tokens.extend(item.token_ids)
            ends += item.finish_reason is not None
        assert ends == 1, "an answer ended without a reason"
        return tokens

    def check_memory(self) -> None:
        """Every node holds what the plan says, and nothing else; while nothing serves, no more than it may."""
        engines = {0: (self.engine,), **{number: member.engines for number, member in self.workers.items()}}
        if not self.serving:
            assert all(engine.used_bytes <= engine.limit_bytes for own in engines.values() for engine in own)
            return
        held = held_bytes(self.plan)
        used = {(node_id(n), i): engine.used_bytes for n, own in engines.items() for i, engine in enumerate(own)}
        assert used == {place: held.get(place, 0) for place in used}


__all__ = ["REF", "SETTINGS", "SimulatedCluster", "SimulatedWorker", "node_id"]
