"""The devices that this node lends, each with its engine and its thread, and work that passes from one to the next.

What passes is never looked into here: the engine of the device that it leaves copies it to the next. Never imports
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from transport.messages import DeviceLoad, LinkLoad, NodeLoad, SpanKind
from vramancer_cli.errors import VramancerError
from vramancer_cli.runtime.contracts import DeviceExecutor, Engine
from vramancer_cli.telemetry.recorder import Recorder, StepTrace

Done = Callable[[Any, BaseException | None], object]


@dataclass(frozen=True, slots=True)
class LocalDevice:
    """A device: what computes on it, and the thread on which it does. `position`: among the devices of its node, which
    share one `recorder`."""

    engine: Engine
    executor: DeviceExecutor
    position: int = 0
    recorder: Recorder = field(default_factory=Recorder)


@dataclass(frozen=True, slots=True)
class Leg:
    """A part of a way through the devices: `work` makes of what came something to go on with.

    `kind` and `stage` are for the trace.
    """

    device: LocalDevice
    work: Callable[[Any], Any]
    kind: SpanKind
    stage: int


def node_load(devices: Sequence[LocalDevice], steps: int, links: tuple[LinkLoad, ...] = ()) -> NodeLoad:
    """The devices' figures now."""
    loads = (DeviceLoad(device.engine.used_bytes, device.engine.layer_tokens) for device in devices)
    return NodeLoad(tuple(loads), steps, links)


def along(legs: Sequence[Leg], value: Any, trace: StepTrace, done: Done) -> None:
    """Take `value` along the legs, each on its device's thread, legs on one device in one go; returns at once.

    Hidden states are all that may pass from a device to another. `done` gets what came of it, or what went wrong, on
    the thread where that was. Raises what the first device's executor raises when it takes no work.
    """
    device = legs[0].device
    here = tuple(takewhile(lambda leg: leg.device is device, legs))
    rest = legs[len(here) :]

    def work() -> Any:
        result = value
        for leg in here:
            with trace.span(leg.kind, device.position, leg.stage):
                result = leg.work(result)
        if not rest:
            return result
        with trace.span("copy", device.position, rest[0].stage):
            return device.engine.hand_over(result, rest[0].device.engine.device)

    def passed(result: Any, error: BaseException | None) -> None:
        if error is not None or not rest:
            done(result, error)
            return
        try:
            along(rest, result, trace, done)
        except VramancerError as refused:  # the next device is closed, or has too much to do
            done(None, refused)

    device.executor.submit(work, passed)
