"""What each node would have to hold if one other were lost: what is worth fetching before that happens.

Pure; never torch, sockets, clocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from transport.messages import Plan
from transport.types import LayerRange, NodeId
from vramancer_cli.planning.facts import DeviceCapacity

MOST_LOSSES: Final = 16
"""So many nodes, in pipeline order, are imagined lost: each costs a plan."""

Replan = Callable[[Sequence[DeviceCapacity]], Plan | None]
"""The plan with these devices; None where they do not hold the model."""


def layers_ahead(plan: Plan, devices: Sequence[DeviceCapacity], replan: Replan) -> dict[NodeId, tuple[LayerRange, ...]]:
    """For each node but that of the ends, which layers it does not hold and would, were any one other node lost.

    Empty for a node that would get no others. `devices`: those that a plan may use.
    """
    wanted: dict[NodeId, set[int]] = {device.node: set() for device in devices if device.node != plan.ends}
    for lost in [node for node in plan.firsts() if node != plan.ends][:MOST_LOSSES]:
        then = replan([device for device in devices if device.node != lost])
        for node, layers in _held(then).items() if then is not None else ():
            if node in wanted:
                wanted[node] |= layers
    held = _held(plan)
    return {node: _ranges(layers - held.get(node, set())) for node, layers in wanted.items()}


def _held(plan: Plan) -> dict[NodeId, set[int]]:
    held: dict[NodeId, set[int]] = {}
    for stage in plan.stages:
        held.setdefault(stage.node, set()).update(range(stage.layers.start, stage.layers.end))
    return held


def _ranges(layers: set[int]) -> tuple[LayerRange, ...]:
    starts = [layer for layer in sorted(layers) if layer - 1 not in layers]
    ends = [layer + 1 for layer in sorted(layers) if layer + 1 not in layers]
    return tuple(LayerRange(start, end) for start, end in zip(starts, ends, strict=True))
