"""What a plan is made from, beside the model: the capacities of the nodes' devices, and the settings.

Values only. Never torch, sockets, clocks.
"""

from __future__ import annotations

from dataclasses import dataclass

from transport.types import ActivationChoice, CacheFormat, DeviceFacts, NodeId, WeightFormat

Place = tuple[NodeId, int]
"""A device of the cluster: its node, and its position among the devices that the node lends."""


@dataclass(frozen=True, slots=True)
class DeviceCapacity:
    """A device as the planner sees it. `limit_bytes`: all that it may hold of weights, KV and workspace.

    `name` is for people: the node's, and the device's too where the node lends several.
    """

    node: NodeId
    name: str
    device: DeviceFacts
    limit_bytes: int
    position: int = 0

    @property
    def place(self) -> Place:
        return self.node, self.position


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
    activations: ActivationChoice = "auto"
