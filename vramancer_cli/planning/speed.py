"""How long a token takes on a plan: what devices were timed at, and the trips between their nodes.

A token passes through all layers one after the other, so the times add up. Trips between two workers are not measured:
the longer of their trips to the head stands for them. What a trip carries is not counted: a token's activation is
small, and a prompt's is sent while it computes. Pure; never torch, sockets, clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from statistics import median

from transport.messages import Plan
from transport.types import NodeId
from vramancer_cli.planning.facts import DeviceCapacity, Place

Held = tuple[Place, int]
"""A device, and how many layers it holds."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """`layer_s`: what a layer takes on each device for one token; `round_trip_s`: from each node to the head, whose
    ends take `ends_s`."""

    head: NodeId
    layer_s: Mapping[Place, float]
    round_trip_s: Mapping[NodeId, float]
    ends_s: float

    def token_s(self, held: Sequence[Held]) -> float:
        """What a token of one answer takes, with these stages in pipeline order."""
        computing_s = sum(self.layer_s[place] * layers for place, layers in held)
        nodes = [self.head, *(place[0] for place, layers in held if layers), self.head]
        return self.ends_s + computing_s + sum(self._hop_s(one, other) for one, other in pairwise(_runs(nodes)))

    def _hop_s(self, one: NodeId, other: NodeId) -> float:
        return max(self.round_trip_s[one], self.round_trip_s[other]) / 2


def _runs(nodes: Sequence[NodeId]) -> list[NodeId]:
    return [node for node, _ in groupby(nodes)]


def speeds_of(devices: Sequence[DeviceCapacity], head: NodeId, layer_bytes: float, ends_bytes: int) -> Speeds | None:
    """For layers with so many bytes of weights each; None where a device was never timed.

    What a device took for its layers counts. Where it has held none, its timing at the start does, times what the
    others took compared with theirs: the ratio holds what no small test sees, and mostly is alike on all machines.
    """
    timed = {device.place: _timed_s(device, layer_bytes) for device in devices}
    if not all(timed.values()):
        return None
    layer_s = {
        device.place: device.layer_s or timed[device.place] * _ratio(device, devices, timed) for device in devices
    }
    ends = next((device for device in devices if device.place == (head, 0)), None)
    ends_s = ends_bytes / ends.speed.bytes_per_s if ends is not None and ends.speed is not None else 0.0
    round_trip_s = {device.node: 0.0 if device.node == head else device.round_trip_s for device in devices}
    return Speeds(head, layer_s, round_trip_s, ends_s)


def _timed_s(device: DeviceCapacity, layer_bytes: float) -> float:
    if device.speed is None:
        return device.layer_s
    return device.speed.layer_s + layer_bytes / device.speed.bytes_per_s


def _ratio(device: DeviceCapacity, devices: Sequence[DeviceCapacity], timed: Mapping[Place, float]) -> float:
    """What layers took, compared with what the timing said: on devices of the same kind, else on any."""
    served = [other for other in devices if other.layer_s]
    alike = [other for other in served if other.device.kind == device.device.kind] or served
    return median(other.layer_s / timed[other.place] for other in alike) if alike else 1.0


def plan_speeds(plan: Plan, devices: Sequence[DeviceCapacity]) -> Speeds | None:
    """The speeds for a plan's layers."""
    layers = sum(len(stage.layers) for stage in plan.stages)
    weights_bytes = sum(stage.weights_bytes for stage in plan.stages)
    return speeds_of(devices, plan.ends, weights_bytes / max(1, layers), plan.ends_bytes)


def held_layers(plan: Plan) -> list[Held]:
    return [((stage.node, stage.position), len(stage.layers)) for stage in plan.stages]


def predicted_token_s(plan: Plan, devices: Sequence[DeviceCapacity]) -> float | None:
    """What a token takes on the plan; None where a device was never timed, or is not among `devices`."""
    speeds, held = plan_speeds(plan, devices), held_layers(plan)
    if speeds is None or not all(place in speeds.layer_s for place, _ in held):
        return None
    return speeds.token_s(held)
