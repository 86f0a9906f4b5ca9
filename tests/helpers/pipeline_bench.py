"""A head's pipeline and the workers' stages on an in-memory network, without coordinator. Node 0 is the head."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.arithmetic_engine import ArithmeticEngine, LoopDevice, facts
from tests.helpers.simulated_cluster import SETTINGS, SimulatedHub, hello, node_id
from transport.contracts import DataSender, DataSink, Received, TensorBuffer
from transport.errors import TransportError
from transport.inproc import InprocNetwork
from transport.messages import Assign, Message, Plan, StageReady
from transport.types import Address, NodeId, TensorSpec
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.planning.facts import DeviceCapacity
from vramancer_cli.planning.placement import place
from vramancer_cli.runtime.contracts import DeviceExecutor
from vramancer_cli.runtime.local_devices import LocalDevice
from vramancer_cli.runtime.pipeline import Pipeline
from vramancer_cli.runtime.stage_load import HeldStage
from vramancer_cli.runtime.worker_stage import WorkerStage
from vramancer_cli.scheduling.overlap import Overlap
from vramancer_cli.scheduling.scheduler import Scheduler

HEAD = node_id(0)
SMALL = 12_000
"""Bytes: two of the six layers, with KV and workspace, beside the ends."""
WHOLE = 60_000


def address(number: int) -> Address:
    return Address(node_id(number), 1)


def make_plan(limits_bytes: Sequence[int], epoch: int = 1) -> Plan:
    """The arithmetic model over nodes 0, 1, ... with these limits."""
    device = ArithmeticEngine(0).device_facts()
    nodes = [DeviceCapacity(node_id(n), f"node-{n}", device, limit) for n, limit in enumerate(limits_bytes)]
    return place(facts(), nodes, HEAD, SETTINGS, epoch)


def make_assign(plan: Plan, stage: int) -> Assign:
    return Assign(plan, stage, {node_id(n): (address(n),) for n in range(9)})


def make_scheduler(plan: Plan) -> Scheduler:
    return Scheduler(
        epoch=plan.epoch,
        block_count=plan.block_count,
        block_tokens=plan.block_tokens,
        max_step_tokens=plan.max_step_tokens,
        overlap=Overlap.of_plan(plan),
    )


def hidden(values: Sequence[int]) -> TensorBuffer:
    return ArithmeticEngine(0).to_buffers(list(values))[0]


def misshapen(rows: int) -> TensorBuffer:
    """As many rows as are due, of what this model does not compute in."""
    return TensorBuffer(TensorSpec("hidden_states", "uint8", (rows, 1), 0), memoryview(bytes(rows)))


class Silence:
    """A DataSink that remembers, and does nothing."""

    def __init__(self) -> None:
        self.frames: list[Received] = []

    def on_frame(self, sender: NodeId, received: Received) -> None:
        self.frames.append(received)

    def on_closed(self, sender: NodeId, error: TransportError | None) -> None:
        pass


async def no_control(_link: object) -> None:
    raise AssertionError("no control links here")


class PipelineBench:
    """An async context manager. `failed` is what the pipeline said of nodes; `reports` what the workers would tell."""

    def __init__(self, *limits_bytes: int, device: DeviceExecutor | None = None) -> None:
        self.plan = make_plan(limits_bytes)
        self.hub = SimulatedHub(0.001)
        self.engine = ArithmeticEngine(limits_bytes[0])
        self.failed: list[tuple[NodeId, BaseException]] = []
        self.reports: list[Message] = []
        self.ready: dict[NodeId, StageReady] = {}
        self.stages: dict[NodeId, WorkerStage] = {}
        self.networks: dict[NodeId, InprocNetwork] = {}
        self.senders: dict[NodeId, DataSender] = {}
        self.scheduler = make_scheduler(self.plan)
        self._device = device

    async def __aenter__(self) -> PipelineBench:
        head = self.network(0, self)
        placed = list(enumerate(self.plan.stages))
        for _, stage in placed[::-1]:
            if stage.node != HEAD:
                self._make_worker(int(stage.node, 16))
        for index, stage in placed[::-1]:
            if stage.node != HEAD:
                await self._hold(index, stage.node)
        local = next((i for i, stage in placed if stage.node == HEAD), None)
        folder, no_progress = Path(), lambda _loaded, _total: None
        for index, stage in placed:
            before = self.plan.stages[index - 1].node if index else HEAD
            if stage.node != HEAD and (before == HEAD or not self.ready[before].direct):
                self.senders[stage.node] = await head.dial_data([Address(stage.node, 1)], stage.node, lambda *_: None)
        device = LocalDevice(self.engine, self._device or LoopDevice(0.01))
        indices = () if local is None else (local,)
        stages = [HeldStage(i, device, self.engine.load_stage(folder, self.plan, i, no_progress)) for i in indices]
        self.pipeline = Pipeline(
            self.plan,
            head=HEAD,
            devices=(device,),
            ends=self.engine.load_ends(folder, self.plan, no_progress),
            stages=stages,
            senders=self.senders,
            on_failed=lambda node, error: self.failed.append((node, error)),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.pipeline.close()
        for network in self.networks.values():
            await network.close()

    def network(self, number: int, sink: DataSink) -> InprocNetwork:
        network = self.hub.network(hello(number), address(number), no_control, sink)
        self.networks[node_id(number)] = network
        return network

    async def answer(self, prompt: Sequence[int], count: int) -> list[int]:
        """Drives the pipeline as a generation does, one step at a time."""
        self.scheduler.add(0, tuple(prompt), Sampling(temperature=0.0), count, frozenset())
        tokens: list[int] = []
        while scheduled := self.scheduler.schedule(0.0):
            async with asyncio.timeout(5):
                results = await self.pipeline.submit(scheduled)
            sampled = [token for result in results for token in result.tokens]
            for item in self.scheduler.commit(scheduled.step, sampled, 0.0):
                tokens.extend(item.token_ids)
        return tokens

    # --- the head's DataSink ------------------------------------------------------------------------------------

    def on_frame(self, sender: NodeId, received: Received) -> None:
        self.pipeline.on_frame(sender, received)

    def on_closed(self, sender: NodeId, error: TransportError | None) -> None:
        pass

    def _make_worker(self, number: int) -> None:
        stage = WorkerStage([LocalDevice(ArithmeticEngine(WHOLE), LoopDevice(0.01))], self.reports.append)
        self.stages[node_id(number)] = stage
        self.network(number, stage)

    async def _hold(self, index: int, node: NodeId) -> None:
        answer = await self.stages[node].hold(make_assign(self.plan, index), self.networks[node], address(0))
        assert isinstance(answer, StageReady), answer
        self.ready[node] = answer
