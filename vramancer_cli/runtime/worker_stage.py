"""The stages of a plan that a worker holds, one on each device: loading them, the steps that come in for them, and the
data link onward.

The hot path of an activation never touches the event loop: receiving thread, device threads, sending thread.
Never the control link: what the head must hear goes through `report`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transport.connection import StepOrder
from transport.contracts import DataSender, Network, Received, TensorBuffer
from transport.errors import RemoteProtocolError, TransportError
from transport.messages import (
    Assign,
    AssignRefused,
    BadFrames,
    LinkLoad,
    LoadProgress,
    Message,
    Plan,
    StageFailed,
    StageReady,
    Step,
)
from transport.types import Address, LayerRange, NodeId
from vramancer_cli.errors import ModelError, OverLimitError, VramancerError
from vramancer_cli.runtime import data_links
from vramancer_cli.runtime.checkpoints import Checkpoints, OwnCheckpoints
from vramancer_cli.runtime.contracts import Engine, Progress, Stage
from vramancer_cli.runtime.data_links import activation
from vramancer_cli.runtime.holding import Holding
from vramancer_cli.runtime.local_devices import Leg, LocalDevice, along
from vramancer_cli.runtime.outlet import Outlet
from vramancer_cli.runtime.stage_load import SLOT, HeldStage, StageLoad
from vramancer_cli.telemetry import log

PROGRESS_EVERY_BYTES = 64 << 20
LINK_GRACE_S = 1.0
"""A link onward mostly breaks because the next node died. The head sees that itself, and should name that node, not
the one that could not reach it: so a broken link is only reported if the stage is still held after this time."""

Report = Callable[[Message], None]


@dataclass(slots=True)
class _Held:
    """The stages, which follow each other, and where their results go."""

    plan: Plan
    stages: tuple[HeldStage, ...]
    outlet: Outlet
    order: StepOrder

    @property
    def first(self) -> int:
        return self.stages[0].index

    @property
    def layers(self) -> LayerRange:
        return self.plan.run_layers(self.first)

    @property
    def sources(self) -> tuple[NodeId, ...]:
        """Who may send to it: the node before it, or the head, which relays."""
        before = (self.plan.stages[self.first - 1].node,) if self.first else ()
        return (*before, self.plan.ends)


class WorkerStage:
    """The stages of at most one plan. A DataSink; all else on the event loop, where `report` is called too.

    They outlive their plan and the link to the head: those of the next one are made of them.
    """

    def __init__(self, devices: Sequence[LocalDevice], report: Report, checkpoints: Checkpoints | None = None) -> None:
        self._devices = devices
        self._report = report
        self._checkpoints = checkpoints or OwnCheckpoints()
        self._log = log.get("stage")
        self._loop = asyncio.get_running_loop()
        self._holding = Holding([device.executor for device in devices])
        self._held: _Held | None = None
        self.steps = 0

    @property
    def layers(self) -> LayerRange | None:
        return self._held.layers if self._held else None

    @property
    def links(self) -> tuple[LinkLoad, ...]:
        return (self._held.outlet.load(),) if self._held else ()

    # --- loading ------------------------------------------------------------------------------------------------

    async def hold(self, assign: Assign, network: Network, head_address: Address) -> Message | None:
        """Make the assigned stages of what is held, and dial onward; the answer for the head.

        None when they were let go meanwhile. To be cancelled before anything else is called.
        """
        self.unlink()
        load = StageLoad(assign.plan, assign.stage, self._devices, self._holding, self._progress(assign.plan.epoch))
        try:
            return await self._load_and_dial(load, assign, network, head_address)
        except Exception as error:  # the door to the head: whatever it is, this node does not hold those stages
            self.let_go()
            return self._sorry(load, assign.plan, error)

    def _sorry(self, load: StageLoad, plan: Plan, error: Exception) -> Message:
        epoch, reason = plan.epoch, str(error) or type(error).__name__
        if isinstance(error, TransportError):
            return StageFailed(epoch, 0, reason)
        if isinstance(error, OverLimitError):
            return AssignRefused(epoch, error.needed_bytes, error.present_bytes, reason, load.position)
        if not isinstance(error, VramancerError):
            self._log.error("loading failed", exc_info=error)
        return AssignRefused(epoch, plan.stages[load.at].total_bytes, 0, reason, load.position)

    async def _load_and_dial(
        self, load: StageLoad, assign: Assign, network: Network, head_address: Address
    ) -> StageReady | None:
        await self._holding.settle(SLOT)
        head = _head_addresses(assign, head_address)
        folder = await self._checkpoints.find(assign, head, self._report)
        stages = await load.run(partial(_load, folder, assign.plan))
        if stages is None:
            return None
        sender, direct = await self._dial_onward(assign, network, head)
        self._holding.keep(sender)
        sender.watch(self._devices[0].recorder.sending(stages[-1].index))
        following = data_links.node_after(assign.plan, assign.stage)
        outlet = Outlet(assign.plan, following if direct else assign.plan.ends, sender, relayed=not direct)
        self._held = _Held(assign.plan, stages, outlet, StepOrder())
        self._log.info("stage ready", layers=str(self.layers), epoch=assign.plan.epoch, direct=direct)
        weights_bytes = sum(held.stage.weights_bytes for held in stages)
        return StageReady(assign.plan.epoch, weights_bytes, sum(held.stage.kv_bytes for held in stages), direct)

    def _progress(self, epoch: int) -> Progress:
        """For the devices' threads: tells the head every now and then."""
        reported = 0

        def progress(loaded_bytes: int, total_bytes: int) -> None:
            nonlocal reported
            if loaded_bytes - reported >= PROGRESS_EVERY_BYTES or loaded_bytes == total_bytes:
                reported = loaded_bytes
                self._loop.call_soon_threadsafe(self._report, LoadProgress(epoch, loaded_bytes, total_bytes))

        return progress

    async def _dial_onward(self, assign: Assign, network: Network, head: Sequence[Address]) -> tuple[DataSender, bool]:
        """A data link to the node of the next stage; where it cannot be reached, to the head, which relays."""
        plan = assign.plan

        def closed(_node: NodeId, error: TransportError | None) -> None:
            if error is not None:
                self._loop.call_soon_threadsafe(self._link_broke, plan.epoch, 0, error)

        node = data_links.node_after(plan, assign.stage)
        if node != plan.ends:
            try:
                return await data_links.dial(network, assign.addresses.get(node, ()), node, closed), True
            except TransportError as error:
                self._log.warning("next stage not reachable, the head relays", node=node, error=str(error))
        return await data_links.dial(network, head, plan.ends, closed), node == plan.ends

    def unlink(self) -> None:
        """Take no more steps, and close the link onward; what is loaded stays for the next plan."""
        self._held = None
        self._holding.drop_links()

    def let_go(self) -> None:
        """Unload, and close the link onward; without waiting, see `Holding`."""
        self._held = None
        self._holding.let_go()

    # --- the hot path -------------------------------------------------------------------------------------------

    def on_frame(self, sender: NodeId, received: Received) -> None:
        """An activation, on its link's thread. Raises RemoteProtocolError, which closes that link."""
        message = activation(received)
        held = self._held
        if held is None or received.epoch < held.plan.epoch:
            return  # of an older plan
        if received.epoch > held.plan.epoch:
            raise RemoteProtocolError(f"An activation came of plan {received.epoch}, which is not held here.")
        if sender not in held.sources or message.stage != held.first:
            raise RemoteProtocolError(
                f"An activation for stage {message.stage} came to stage {held.first} from a stranger."
            )
        held.order.accept(received.epoch, received.number)
        held.stages[0].device.recorder.received(received, held.first)
        try:
            self._execute(held, sender, message.step, received.tensors)
        except VramancerError as error:  # the device is closed, or has too much to do
            self._fail(message.step, error)

    def on_closed(self, sender: NodeId, error: TransportError | None) -> None:
        """Whom the head lost it sees on its control link, and the next plan dials anew. Garbage it cannot see."""
        held = self._held
        if held is not None and isinstance(error, RemoteProtocolError):
            self._accuse(held.plan, sender, error)

    def _execute(self, held: _Held, sender: NodeId, step: Step, buffers: Mapping[str, TensorBuffer]) -> None:
        first, last = held.stages[0].device, held.stages[-1].device
        stages = (stage.leg(step) for stage in held.stages)
        following, outlet = held.stages[-1].index + 1, held.outlet
        enter = Leg(first, first.engine.from_buffers, "copy", held.first)
        leave = Leg(last, partial(outlet.buffers, last.engine, following), "copy", following - 1)
        legs = (enter, *stages, leave)

        def done(result: tuple[TensorBuffer, ...] | None, error: BaseException | None) -> None:
            if isinstance(error, RemoteProtocolError) and sender != held.plan.ends:
                self._accuse(held.plan, sender, error)
                return
            if result is None:
                self._fail(step, error)
                return
            self.steps += 1
            try:
                outlet.send(following, step, result)
            except TransportError as link_error:
                self._loop.call_soon_threadsafe(self._link_broke, step.epoch, step.number, link_error)

        along(legs, buffers, first.recorder.of_step(step), done)

    # --- failing ------------------------------------------------------------------------------------------------

    def _accuse(self, plan: Plan, sender: NodeId, error: RemoteProtocolError) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._report, BadFrames(plan.epoch, sender, str(error)))

    def _fail(self, step: Step, error: BaseException | None) -> None:
        """From any thread."""
        message = StageFailed(step.epoch, step.number, str(error) or type(error).__name__)
        self._loop.call_soon_threadsafe(self._report, message)

    def _link_broke(self, epoch: int, number: int, error: TransportError) -> None:
        self._loop.call_later(LINK_GRACE_S, self._report_link, StageFailed(epoch, number, f"data link: {error}"))

    def _report_link(self, failed: StageFailed) -> None:
        if self._held is not None and self._held.plan.epoch == failed.epoch:
            self._report(failed)


def _load(folder: Path, plan: Plan, engine: Engine, index: int, progress: Progress, old: Stage | None) -> Stage:
    """On the device's thread."""
    if engine.digest(folder) != plan.model.digest:
        if old is not None:
            old.close()
        raise ModelError(f"This node's copy of '{plan.model.name}' is not the head's.")
    return engine.load_stage(folder, plan, index, progress, old)


def _head_addresses(assign: Assign, seen: Address) -> tuple[Address, ...]:
    """Where it was reached first."""
    return (seen, *(address for address in assign.addresses.get(assign.plan.ends, ()) if address != seen))
