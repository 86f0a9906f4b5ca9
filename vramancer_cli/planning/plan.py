"""What can be said of a Plan: whether it is sound, what it puts where, whether two are the same work.

`Plan` itself is a value of the wire (transport.messages). Pure; never torch, sockets, clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from transport.messages import Plan
from transport.types import NodeId
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.planning.memory import stage_workspace_bytes

WORTH_MOVING: Final = 1.5
"""While requests run, another plan must hold so many times the tokens: every move costs each of them a pause, and a
cluster where machines come and go would do nothing else."""


def worth_moving(old: Plan, new: Plan) -> bool:
    """Whether requests that wait gain enough by `new` for those that run to be computed again.

    What counts is room for tokens; how fast nodes and links are is not known here yet.
    """
    return new.block_count * new.block_tokens >= WORTH_MOVING * old.block_count * old.block_tokens


def same_deployment(old: Plan, new: Plan) -> bool:
    """Whether nothing would move: equal in all but the epoch and the sentences."""
    return msgspec.structs.replace(new, epoch=old.epoch, reasons=old.reasons) == old


def with_reasons(plan: Plan, reasons: Mapping[NodeId, str]) -> Plan:
    """The same plan with other sentences."""
    return msgspec.structs.replace(plan, reasons=dict(reasons))


def held_bytes(plan: Plan) -> dict[NodeId, int]:
    """What the plan puts on each node: its stage, and the ends where they are."""
    held = {stage.node: stage.total_bytes for stage in plan.stages}
    held[plan.ends] = held.get(plan.ends, 0) + plan.ends_bytes
    return held


def validate(plan: Plan, facts: ModelFacts, limits: Mapping[NodeId, int] | None = None) -> None:
    """Raises ValueError unless every layer is placed exactly once, in order, with the bytes that it takes.

    With `limits` (bytes per node) no node may hold more than its own, and no node may be missing from it.
    """
    _validate_layers(plan, facts)
    _validate_bytes(plan, facts)
    if limits is None:
        return
    for node, count in held_bytes(plan).items():
        if count > limits.get(node, -1):
            raise ValueError(f"Node {node} holds {count} bytes, over its limit.")


def _validate_layers(plan: Plan, facts: ModelFacts) -> None:
    if len({stage.node for stage in plan.stages}) != len(plan.stages):
        raise ValueError("A node holds two stages.")
    covered = 0
    for stage in plan.stages:
        if stage.layers.start != covered or stage.layers.end <= covered:
            raise ValueError(f"Layers {stage.layers} do not follow layer {covered - 1}.")
        covered = stage.layers.end
    if covered != facts.layer_count:
        raise ValueError(f"{covered} of {facts.layer_count} layers are placed.")


def _validate_bytes(plan: Plan, facts: ModelFacts) -> None:
    tokens = plan.block_count * plan.block_tokens
    if tokens < plan.context_tokens:
        raise ValueError(f"{plan.block_count} blocks do not hold one context of {plan.context_tokens} tokens.")
    if facts.has_state != bool(plan.state_slots):
        raise ValueError(f"{plan.state_slots} state slots do not suit the model.")
    workspace_bytes = stage_workspace_bytes(facts, plan.dtype, plan.quantize, plan.context_tokens, plan.max_step_tokens)
    for stage in plan.stages:
        if stage.weights_bytes != facts.weights_bytes(stage.layers, plan.dtype, plan.quantize):
            raise ValueError(f"The weights of layers {stage.layers} are not counted right.")
        state_bytes = facts.state_bytes(stage.layers, plan.state_slots)
        if stage.kv_bytes != facts.kv_bytes(stage.layers, plan.dtype, tokens) + state_bytes:
            raise ValueError(f"The KV cache of layers {stage.layers} is not counted right.")
        if stage.workspace_bytes != workspace_bytes:
            raise ValueError(f"The workspace of layers {stage.layers} is not counted right.")
