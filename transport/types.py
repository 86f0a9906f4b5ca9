"""Plain values that every floor shares: addresses, layer ranges, device and node facts, tensor descriptions.

Only msgspec may be imported here.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

NodeId = str
"""32 lower-case hex digits; the DNS name in the node's certificate."""

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""An int for every type checker; the codec refuses one from the wire that is negative or over 63 bits."""

LinkKind = Literal["control", "data", "bulk"]
DeviceKind = Literal["cpu", "cuda", "rocm", "mps", "xpu"]
ModelSource = Literal["builtin", "folder", "hub"]
WeightFormat = Literal["none", "int8", "int4", "int4-64", "int4-128", "stored"]
"""What the weights of layers are held in. none: the plan's dtype. int4 has groups of 32, or of the number behind the
hyphen. stored: each as the checkpoint has it, where that can be taken over without loss, else the plan's dtype. What is
stored in as few bits as int8 or int4 ask for, or fewer, is taken over there too."""
CacheFormat = Literal["plain", "int8"]
"""What keys and values are held in. plain: the plan's dtype."""
ActivationFormat = Literal["plain", "int8", "int4"]
"""What hidden states cross a link in. plain: the plan's dtype."""
ActivationChoice = Literal["auto", "plain", "int8", "int4"]
"""auto: int8 where that shortens a step. int8 and int4: what to take wherever both ends know it."""

DTYPE_BYTES: Final[dict[str, int]] = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int8": 1,
    "uint8": 1,
    "int32": 4,
    "int64": 8,
}
"""Bytes per element of each dtype that may cross the wire."""


class Address(msgspec.Struct, frozen=True, array_like=True):
    """A TCP address; `host` is an IPv4 or IPv6 literal or a name."""

    host: str
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)]

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class LayerRange(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Decoder layers `[start, end)`; empty when start == end."""

    start: Natural
    end: Natural

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"[{self.start}, {self.end})"


class DeviceFacts(msgspec.Struct, frozen=True):
    """One accelerator (or the CPU) as its driver describes it; sizes in bytes, as read at `NodeFacts` time."""

    kind: DeviceKind
    index: Natural
    name: str
    total_bytes: Natural
    free_bytes: Natural

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" and not self.index else f"{self.kind}:{self.index}"


MAX_DEVICES: Final = 16
"""As many devices of one node may be in a plan."""


class OfferedDevice(msgspec.Struct, frozen=True):
    """A device that a node lends. `limit_bytes`: all that the node will ever allocate on it for weights, KV and
    workspace (its `--memory`).
    """

    facts: DeviceFacts
    limit_bytes: Natural


class Versions(msgspec.Struct, frozen=True):
    """What computes: a plan may only mix nodes whose torch and transformers versions are equal."""

    program: str
    torch: str
    transformers: str


class NodeFacts(msgspec.Struct, frozen=True):
    """What a node says of itself when it joins.

    Its `devices` are all different, in the node's own order: the first one of the head holds the model's ends.
    `addresses` are where its node port answers, best first; untrusted until dialled.
    """

    node_id: NodeId
    name: str
    os: str
    devices: Annotated[tuple[OfferedDevice, ...], msgspec.Meta(min_length=1, max_length=MAX_DEVICES)]
    addresses: tuple[Address, ...]
    versions: Versions

    @property
    def limit_bytes(self) -> int:
        return sum(device.limit_bytes for device in self.devices)


class TensorSpec(msgspec.Struct, frozen=True, array_like=True):
    """One tensor in a frame's payload: row-major, little-endian, `offset` bytes into the payload."""

    name: str
    dtype: str
    shape: tuple[Natural, ...]
    offset: Natural


class Peer(msgspec.Struct, frozen=True):
    """A cluster seen over mDNS. A rumour: nothing in it is trusted."""

    cluster_id_prefix: str
    name: str
    addresses: tuple[Address, ...]
    accepts_pairing: bool
    api_port: int
    version: str
