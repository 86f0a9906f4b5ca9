"""What a plan is made from, beside the model: the nodes' capacities and the settings.

Values only. Never torch, sockets, clocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from transport.types import CacheFormat, DeviceFacts, NodeId, WeightFormat


@dataclass(frozen=True, slots=True)
class NodeCapacity:
    """A node as the planner sees it. `limit_bytes`: all that it may hold of weights, KV and workspace."""

    node: NodeId
    name: str
    device: DeviceFacts
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What the person chose. `dtype` may be "auto"; `context_tokens` >= 1 is cut to what the checkpoint declares."""

    dtype: str
    context_tokens: int
    block_tokens: int = 16
    max_step_tokens: int = 256
    max_sequences: int = 16
    quantize: WeightFormat = "none"
    kv_cache: CacheFormat = "plain"
