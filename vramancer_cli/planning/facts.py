"""What a plan is made from, beside the model: the capacities of the nodes' devices, and the settings.

Values only. Never torch, sockets, clocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transport.types import ActivationChoice, CacheFormat, DeviceFacts, DeviceSpeed, NodeId, WeightFormat

Preference = Literal["speed", "room"]

Place = tuple[NodeId, int]
"""A device of the cluster: its node, and its position among the devices that the node lends."""


@dataclass(frozen=True, slots=True)
class DeviceCapacity:
    """A device as the planner sees it. `limit_bytes`: all that it may hold of weights, KV and workspace.

    `name` is for people: the node's, and the device's too where the node lends several. `speed`: what it was timed at
    when it started; `layer_s`, `layer_token_s`: what a layer of this model took there lately in steps of a few tokens,
    and for each token in steps of many (0: unknown); `round_trip_s`: between its node and the head, at its best lately.
    """

    node: NodeId
    name: str
    device: DeviceFacts
    limit_bytes: int
    position: int = 0
    speed: DeviceSpeed | None = None
    layer_s: float = 0.0
    layer_token_s: float = 0.0
    round_trip_s: float = 0.0

    @property
    def place(self) -> Place:
        return self.node, self.position


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What the person chose. `dtype` may be "auto"; `context_tokens` >= 1 is cut to what the checkpoint declares.

    `prefer` "room": every node holds what it can, whatever a token takes then.
    """

    dtype: str
    context_tokens: int
    block_tokens: int = 16
    max_step_tokens: int = 256
    max_sequences: int = 16
    quantize: WeightFormat = "none"
    kv_cache: CacheFormat = "plain"
    prefer: Preference = "speed"
    activations: ActivationChoice = "auto"
