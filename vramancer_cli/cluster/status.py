"""The cluster as a person sees it: what `status`, the page and /api/nodes show. JSON in, JSON out.

Standard library only, so that the small verbs start fast.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Literal

ServiceState = Literal["waiting", "loading", "ready", "failed"]
NodeState = Literal["joined", "loading", "ready", "spare", "lost"]


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One device of a node; `layers` is [start, end) or None."""

    device: str
    device_name: str
    memory_used_bytes: int
    memory_limit_bytes: int
    layers: tuple[int, int] | None
    layer_tokens: int


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """One node. `layers` is [start, end) or None; `why` is the planner's sentence; `round_trip_s` None for the head.

    `fetch_bytes`: weights that it lacked and fetches from the head before it loads; `fetched_bytes` are there.
    Layers, memory and counts are those of all its `devices` together, `device` their names; a head of before there were
    several tells of none.
    """

    id: str
    name: str
    role: Literal["head", "worker"]
    os: str
    device: str
    device_name: str
    memory_used_bytes: int
    memory_limit_bytes: int
    state: NodeState
    round_trip_s: float | None
    layers: tuple[int, int] | None
    layer_tokens: int
    loaded_fraction: float
    direct: bool
    why: str
    address: str
    fetched_bytes: int = 0
    fetch_bytes: int = 0
    devices: tuple[DeviceStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """A data link between two nodes, by name. `bytes_per_s`: as measured on large frames, 0 before there were any.
    `activations`: what the last step's hidden states crossed it in.
    """

    source: str
    target: str
    bytes_per_s: int
    activations: str


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """`reason` says in one sentence why `state` is not "ready" (empty when it is).

    `tokens_per_trip`: what a trip through all nodes gives an answer, since the start; None before the first.
    `draft_acceptance`: which share of the tokens that were guessed beforehand was right; None where none was.
    Of `prefix_asked_tokens` that sequences began with, `prefix_found_tokens` were in the prefix cache; since start.
    """

    cluster: str
    cluster_id: str
    version: str
    state: ServiceState
    reason: str
    model: str
    layer_count: int
    dtype: str
    context_tokens: int
    epoch: int
    uptime_s: float
    running: int
    waiting: int
    tokens_per_s: float
    api_url: str
    nodes: tuple[NodeStatus, ...] = field(default_factory=tuple)
    quantize: str = "none"
    tokens_per_trip: float | None = None
    draft_acceptance: float | None = None
    prefix_found_tokens: int = 0
    prefix_asked_tokens: int = 0
    links: tuple[LinkStatus, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ClusterStatus:
        """Ignores unknown keys, so that an older board can read a newer head. Raises KeyError, TypeError."""
        nodes = tuple(_node_from_json(node) for node in data["nodes"])
        links = tuple(_link_from_json(link) for link in data.get("links", ()))
        later = {name: data[name] for name in _LATER if name in data}
        others = (f.name for f in fields(cls) if f.name not in ("nodes", "links", *_LATER))
        values: dict[str, Any] = {name: data[name] for name in others}
        return cls(**values, nodes=nodes, links=links, **later)

    @property
    def numbers(self) -> str:
        """What the model computes in and, where that differs, what its layers' weights are held in."""
        return self.dtype if self.quantize == "none" else f"{self.dtype}, {self.quantize} weights"


_LATER: Final = ("quantize", "tokens_per_trip", "draft_acceptance", "prefix_found_tokens", "prefix_asked_tokens")
"""What an older head does not tell."""


def _node_from_json(data: dict[str, Any]) -> NodeStatus:
    values: dict[str, Any] = {f.name: data[f.name] for f in fields(NodeStatus) if f.name != "devices"}
    values["layers"] = _layers(data["layers"])
    return NodeStatus(**values, devices=tuple(_device_from_json(device) for device in data.get("devices", ())))


def _device_from_json(data: dict[str, Any]) -> DeviceStatus:
    values: dict[str, Any] = {f.name: data[f.name] for f in fields(DeviceStatus)}
    values["layers"] = _layers(data["layers"])
    return DeviceStatus(**values)


def _link_from_json(data: dict[str, Any]) -> LinkStatus:
    return LinkStatus(**{f.name: data[f.name] for f in fields(LinkStatus)})


def _layers(data: Any) -> tuple[int, int] | None:
    if data is None:
        return None
    start, end = data
    return int(start), int(end)
