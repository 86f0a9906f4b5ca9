"""Whether another plan is worth moving layers for: the one rule, with its numbers. It keeps a cluster from flapping.

A plan's worth is room for tokens and the time of one, predicted from what was measured. Measurements waver by a tenth
on a quiet machine, so a plan that is less than so much better is not better. Pure; never torch, sockets, clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from transport.messages import Plan
from transport.types import LayerRange, NodeId
from vramancer_cli.planning.choice import ROOM_CONTEXTS
from vramancer_cli.planning.explain import reserve_reason
from vramancer_cli.planning.facts import DeviceCapacity, Place
from vramancer_cli.planning.speed import plan_speeds, predicted_token_s

ROOM_GAIN: Final = 1.5
"""While requests run, and some wait, another plan must hold so many times the tokens: every move costs each of them a
pause, and a cluster where machines come and go would do nothing else."""
IDLE_GAIN: Final = 1.15
"""So many times as fast a token must be where nobody has to wait for the move."""
BUSY_GAIN: Final = 1.3
"""The same while requests run."""
PAYBACK_S: Final = 60.0
"""What a move costs must be regained within so long."""
MOVE_S: Final = 0.5
"""What a move costs beside loading and computing again: steps come back, links are dialled, caches are made."""
LOAD_BYTES_PER_S: Final = 100e6
"""Of a node that has not loaded anything yet."""
DRIFT: Final = 1.25
"""A layer takes so many times as long as when the plan was made, or so many times less: time to plan again."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What runs and waits now. `running_tokens`: of all sequences that a move has computed again."""

    running: int = 0
    waiting: int = 0
    running_tokens: int = 0

    @property
    def is_busy(self) -> bool:
        return self.running + self.waiting > 0


def worth_moving(
    old: Plan,
    new: Plan,
    devices: Sequence[DeviceCapacity],
    traffic: Traffic,
    load_bytes_per_s: Mapping[NodeId, float],
) -> bool:
    """Whether the gain by `new` is worth the move. `devices`: of all nodes that are there."""
    old_s, new_s = predicted_token_s(old, devices), predicted_token_s(new, devices)
    gains_room = traffic.waiting > 0 and _tokens(new) >= ROOM_GAIN * _tokens(old)
    if old_s is None or new_s is None:
        return gains_room or not traffic.is_busy
    if not traffic.is_busy:
        return _useful_tokens(new) > _useful_tokens(old) or _is_faster(old, new, old_s, new_s, IDLE_GAIN)
    if gains_room:
        return True
    regained_s = PAYBACK_S * (1 - new_s / old_s)
    is_faster = _is_faster(old, new, old_s, new_s, BUSY_GAIN)
    return is_faster and move_s(old, new, devices, traffic, load_bytes_per_s) <= regained_s


def move_s(
    old: Plan, new: Plan, devices: Sequence[DeviceCapacity], traffic: Traffic, load_bytes_per_s: Mapping[NodeId, float]
) -> float:
    """What a move costs those who run: loading what moves, side by side, and computing their tokens again."""
    loading_s = (size / load_bytes_per_s.get(node, LOAD_BYTES_PER_S) for node, size in moved_bytes(old, new).items())
    return MOVE_S + max(loading_s, default=0.0) + traffic.running_tokens * _prefill_token_s(new, devices)


def moved_bytes(old: Plan, new: Plan) -> dict[NodeId, int]:
    """The weights that each node of `new` does not hold in `old`."""
    has = {(stage.node, layer) for stage in old.stages for layer in _layers(stage.layers)}
    moved: dict[NodeId, int] = {}
    for stage in new.stages:
        lacking = sum((stage.node, layer) not in has for layer in _layers(stage.layers))
        moved[stage.node] = moved.get(stage.node, 0) + stage.weights_bytes * lacking // len(stage.layers)
    return moved


def declined_reasons(old: Plan, new: Plan, devices: Sequence[DeviceCapacity]) -> dict[NodeId, str]:
    """The sentences when `old` stays: those of `new` for nodes that hold nothing either way."""
    old_s, new_s = predicted_token_s(old, devices), predicted_token_s(new, devices)
    held = {stage.node for stage in (*old.stages, *new.stages)}
    told = {node: reason for node, reason in new.reasons.items() if node not in held}
    for node in {stage.node for stage in new.stages} - {stage.node for stage in old.stages}:
        told[node] = "in reserve" if old_s is None or new_s is None else reserve_reason(old_s, new_s)
    return dict(old.reasons) | told


def has_drifted(then: Mapping[Place, float], devices: Sequence[DeviceCapacity]) -> bool:
    """Whether what layers take on a device was not known `then`, or was another by DRIFT."""
    return any(_differs(then.get(device.place, 0.0), device.layer_s) for device in devices)


def _differs(then_s: float, now_s: float) -> bool:
    if not now_s or not then_s:
        return now_s > 0
    return max(now_s / then_s, then_s / now_s) >= DRIFT


def _is_faster(old: Plan, new: Plan, old_s: float, new_s: float, gain: float) -> bool:
    return old_s >= gain * new_s and _useful_tokens(new) >= _useful_tokens(old)


def _prefill_token_s(plan: Plan, devices: Sequence[DeviceCapacity]) -> float:
    """Where it was never measured, as long as decoding: too much rather than too little."""
    speeds, by_place = plan_speeds(plan, devices), {device.place: device for device in devices}
    if speeds is None:
        return 0.0
    total_s = 0.0
    for stage in plan.stages:
        place = (stage.node, stage.position)
        total_s += len(stage.layers) * (by_place[place].layer_token_s or speeds.layer_s[place])
    return total_s


def _tokens(plan: Plan) -> int:
    return plan.block_count * plan.block_tokens


def _useful_tokens(plan: Plan) -> int:
    """Room that is worth more than speed, see `choice`."""
    return min(_tokens(plan), ROOM_CONTEXTS * plan.context_tokens)


def _layers(layers: LayerRange) -> range:
    return range(layers.start, layers.end)
