"""The stages of one plan, as the head drives them: a scheduled step in, what is read off its outputs out.

The head's own stages are not special: a step carries the index of the stage that it enters next, and whoever gets
it runs it, passes it on, or (after the last stage) samples from it. Frames for a stage that its predecessor could
not dial come to the head, which relays them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from transport.contracts import DataSender, Received, TensorBuffer
from transport.errors import RemoteProtocolError, TransportError
from transport.messages import LinkLoad, Plan, Step
from transport.types import NodeId
from vramancer_cli.errors import VramancerError
from vramancer_cli.models.readout import RowOutput
from vramancer_cli.runtime.contracts import Ends, Engine, Hidden
from vramancer_cli.runtime.data_links import activation
from vramancer_cli.runtime.local_devices import Leg, LocalDevice, along
from vramancer_cli.runtime.outlet import Outlet
from vramancer_cli.runtime.stage_load import HeldStage
from vramancer_cli.scheduling.step_parts import Scheduled

Failed = Callable[[NodeId, BaseException], None]
"""Called on the loop when the pipeline breaks: the node at fault, and why."""


@dataclass(slots=True)
class _Flight:
    """A step under way. `entered` is the last stage that its hidden states came to the head for."""

    scheduled: Scheduled
    results: asyncio.Future[list[RowOutput]]
    entered: int = 0


@dataclass(frozen=True, slots=True)
class _Onward:
    """What must enter `stage` on another node."""

    stage: int
    buffers: tuple[TensorBuffer, ...]


class Pipeline:
    """Steps of one epoch, in order, several at once. Loop methods: submit, close. Any thread: on_frame.

    `senders` has a data link to every remote stage that the head feeds; they stay their maker's to close.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        head: NodeId,
        devices: Sequence[LocalDevice],
        ends: Ends,
        stages: Sequence[HeldStage],
        senders: Mapping[NodeId, DataSender],
        on_failed: Failed,
    ) -> None:
        self._plan = plan
        self._head = head
        self._devices = devices
        self._ends = ends
        self._stages = {held.index: held for held in stages}
        self._outlets = {node: Outlet(plan, node, sender) for node, sender in senders.items()}
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        self._in_flight: dict[int, _Flight] = {}
        self._closed = False
        self.recorder = devices[0].recorder

    def submit(self, scheduled: Scheduled) -> asyncio.Future[list[RowOutput]]:
        """Start a step; the future holds one output per readout. It stays open when the pipeline breaks."""
        results: asyncio.Future[list[RowOutput]] = self._loop.create_future()
        self._in_flight[scheduled.step.number] = _Flight(scheduled, results)
        embed = Leg(self._devices[0], partial(self._ends.embed, scheduled.step), "embed", 0)
        self._run_here(scheduled, 0, embed, scheduled.token_ids, source=self._head)
        return results

    def on_frame(self, sender: NodeId, received: Received) -> None:
        """A frame from a stage, on its link's thread."""
        self.recorder.received(received)
        self._loop.call_soon_threadsafe(self._arrived, sender, received)

    @property
    def links(self) -> tuple[LinkLoad, ...]:
        """Those that the head feeds."""
        return tuple(outlet.load() for outlet in self._outlets.values())

    def close(self) -> None:
        """Nothing comes out any more, and nothing is said of what still fails."""
        self._closed = True
        for flight in self._in_flight.values():
            flight.results.cancel()
        self._in_flight.clear()

    # --- frames from other nodes --------------------------------------------------------------------------------

    def _arrived(self, sender: NodeId, received: Received) -> None:
        if self._closed or received.epoch < self._plan.epoch:
            return
        try:
            flight, stage = self._checked(sender, received)
        except RemoteProtocolError as error:
            self._broke(sender, error)
            return
        flight.entered = stage
        if self._is_remote(stage):
            self._send(flight.scheduled.step, stage, tuple(received.tensors.values()))
        else:
            device = self._stages[stage].device if stage in self._stages else self._devices[0]
            enter = Leg(device, device.engine.from_buffers, "copy", stage)
            self._run_here(flight.scheduled, stage, enter, received.tensors, source=sender)

    def _checked(self, sender: NodeId, received: Received) -> tuple[_Flight, int]:
        message = activation(received)
        stage = message.stage
        if received.epoch > self._plan.epoch:
            raise RemoteProtocolError(f"A result came of plan {received.epoch}, which nobody has made yet.")
        if not 1 <= stage <= len(self._plan.stages) or self._plan.stages[stage - 1].node != sender:
            raise RemoteProtocolError(f"An activation for stage {stage} came from a node that is not before it.")
        if self._is_remote(stage) and self._plan.stages[stage].node == sender:
            raise RemoteProtocolError(f"An activation for stage {stage} came from the node that holds it.")
        if self._is_remote(stage) and self._plan.stages[stage].node not in self._outlets:
            raise RemoteProtocolError(f"An activation for stage {stage} came to the head, which does not feed it.")
        flight = self._in_flight.get(received.number)
        if flight is None or flight.scheduled.step != message.step or stage <= flight.entered:
            raise RemoteProtocolError(f"A result came for step {received.number}, which was not asked for.")
        self._check_rows(received.tensors.values(), stage, message.step)
        return flight, stage

    def _check_rows(self, buffers: Iterable[TensorBuffer], stage: int, step: Step) -> None:
        rows = step.output_count if stage == len(self._plan.stages) else step.token_count
        for buffer in buffers:
            if buffer.spec.shape[:1] != (rows,):
                raise RemoteProtocolError(
                    f"A result for step {step.number} has shape {buffer.spec.shape}, not {rows} rows."
                )

    def _is_remote(self, stage: int) -> bool:
        return stage < len(self._plan.stages) and self._plan.stages[stage].node != self._head

    # --- what the head runs -------------------------------------------------------------------------------------

    def _run_here(self, scheduled: Scheduled, stage: int, enter: Leg, value: Any, source: NodeId) -> None:
        """Run what the head holds from `stage` on, on its devices' threads, then sample or send from there."""

        def done(result: list[RowOutput] | _Onward | None, error: BaseException | None) -> None:
            if isinstance(result, _Onward):
                self._send(scheduled.step, result.stage, result.buffers)
            else:
                self._loop.call_soon_threadsafe(self._settle, scheduled.step, result, error, source)

        try:
            along((enter, *self._legs(scheduled, stage)), value, self.recorder.of_step(scheduled.step), done)
        except VramancerError as error:
            self._broke(self._head, error)

    def _legs(self, scheduled: Scheduled, stage: int) -> Iterator[Leg]:
        """From `stage` to where something is read, or to what the next node must get."""
        device = self._devices[0]
        while stage in self._stages:
            held = self._stages[stage]
            yield held.leg(scheduled.step)
            device, stage = held.device, stage + 1
        if stage == len(self._plan.stages):
            yield Leg(self._devices[0], lambda rows: self._ends.read(rows, scheduled.readouts), "read", stage - 1)
        else:
            outlet = self._outlets[self._plan.stages[stage].node]
            out = partial(_onward, outlet, device.engine, stage)
            yield Leg(device, out, "copy", max(0, stage - 1))

    def _send(self, step: Step, stage: int, buffers: tuple[TensorBuffer, ...]) -> None:
        """To the node of `stage`, from any thread."""
        node = self._plan.stages[stage].node
        try:
            self._outlets[node].send(stage, step, buffers)
        except TransportError as error:
            self._loop.call_soon_threadsafe(self._broke, node, error)

    def _settle(self, step: Step, results: list[RowOutput] | None, error: BaseException | None, source: NodeId) -> None:
        if self._closed:
            return
        if error is not None:
            # A bad activation is its sender's fault; everything else that fails here is the head's.
            self._broke(source if isinstance(error, RemoteProtocolError) else self._head, error)
            return
        flight = self._in_flight.pop(step.number)
        if results is not None and not flight.results.done():
            flight.results.set_result(results)

    def _broke(self, node: NodeId, error: BaseException) -> None:
        if not self._closed:
            self._on_failed(node, error)


def _onward(outlet: Outlet, engine: Engine, stage: int, hidden: Hidden) -> _Onward:
    return _Onward(stage, outlet.buffers(engine, stage, hidden))
