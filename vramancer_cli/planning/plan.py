"""What can be said of a Plan: whether it is sound, what it puts where, whether two are the same work.

`Plan` itself is a value of the wire (transport.messages). Pure; never torch, sockets, clocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

import msgspec

from transport.messages import Plan
from transport.types import NodeId
from vramancer_cli.models.cache_window import most_held_blocks
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.planning.facts import Place
from vramancer_cli.planning.memory import stage_workspace_bytes


def same_deployment(old: Plan, new: Plan) -> bool:
    """Whether nothing would move: equal in all but the epoch and the sentences."""
    return msgspec.structs.replace(new, epoch=old.epoch, reasons=old.reasons) == old


def with_reasons(plan: Plan, reasons: Mapping[NodeId, str]) -> Plan:
    """The same plan with other sentences."""
    return msgspec.structs.replace(plan, reasons=dict(reasons))


def held_bytes(plan: Plan) -> dict[Place, int]:
    """What the plan puts on each device: its stage, and the ends on the first device of their node."""
    held = {(stage.node, stage.position): stage.total_bytes for stage in plan.stages}
    held[plan.ends, 0] = held.get((plan.ends, 0), 0) + plan.ends_bytes
    return held


def weights_bytes(plan: Plan | None, node: NodeId) -> int:
    """What the plan has a node load."""
    return sum(stage.weights_bytes for stage in (plan.stages if plan is not None else ()) if stage.node == node)


def validate(plan: Plan, facts: ModelFacts, limits: Mapping[Place, int] | None = None) -> None:
    """Raises ValueError unless every layer is placed exactly once, in order, with the bytes that it takes.

    With `limits` (bytes per device) no device may hold more than its own, and none may be missing from it.
    """
    _validate_layers(plan, facts)
    _validate_bytes(plan, facts)
    if limits is None:
        return
    for place, count in held_bytes(plan).items():
        if count > limits.get(place, -1):
            raise ValueError(f"Device {place} holds {count} bytes, over its limit.")


def _validate_layers(plan: Plan, facts: ModelFacts) -> None:
    if len({(stage.node, stage.position) for stage in plan.stages}) != len(plan.stages):
        raise ValueError("A device holds two stages.")
    if len(list(groupby(stage.node for stage in plan.stages))) != len({stage.node for stage in plan.stages}):
        raise ValueError("The stages of a node do not follow each other.")
    covered = 0
    for stage in plan.stages:
        if stage.layers.start != covered or stage.layers.end <= covered:
            raise ValueError(f"Layers {stage.layers} do not follow layer {covered - 1}.")
        covered = stage.layers.end
    if covered != facts.layer_count:
        raise ValueError(f"{covered} of {facts.layer_count} layers are placed.")


def _validate_bytes(plan: Plan, facts: ModelFacts) -> None:
    tokens = plan.block_count * plan.block_tokens
    window_tokens = {window.window_tokens: window.block_count * plan.block_tokens for window in plan.windows}
    for window in plan.windows:
        held = most_held_blocks(window.window_tokens, plan.max_step_tokens, plan.block_tokens)
        if window.block_count < held or all(part.window_tokens != window.window_tokens for part in facts.windows):
            raise ValueError(
                f"{window.block_count} blocks for windows of {window.window_tokens} do not suit the model."
            )
    if tokens < plan.context_tokens:
        raise ValueError(f"{plan.block_count} blocks do not hold one context of {plan.context_tokens} tokens.")
    if facts.has_state != bool(plan.state_slots):
        raise ValueError(f"{plan.state_slots} state slots do not suit the model.")
    workspace_bytes = stage_workspace_bytes(
        facts, plan.dtype, plan.quantize, plan.context_tokens, plan.max_step_tokens, plan.kv_cache
    )
    for stage in plan.stages:
        if stage.weights_bytes != facts.weights_bytes(stage.layers, plan.dtype, plan.quantize):
            raise ValueError(f"The weights of layers {stage.layers} are not counted right.")
        state_bytes = facts.state_bytes(stage.layers, plan.state_slots)
        kv_bytes = facts.kv_bytes(stage.layers, plan.dtype, tokens, window_tokens, plan.kv_cache)
        if stage.kv_bytes != kv_bytes + state_bytes:
            raise ValueError(f"The KV cache of layers {stage.layers} is not counted right.")
        if stage.workspace_bytes != workspace_bytes:
            raise ValueError(f"The workspace of layers {stage.layers} is not counted right.")
