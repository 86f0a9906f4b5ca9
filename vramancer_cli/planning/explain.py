"""Why each node got what it got, in sentences for people.

Pure; never torch, sockets, clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from transport.messages import StagePlan
from transport.types import LayerRange
from vramancer_cli.planning.facts import DeviceCapacity

_MIB: Final = 1 << 20
_GIB: Final = 1 << 30


def format_bytes(count: int, *, up: bool = False) -> str:
    """'21.0 MiB' or '1.5 GiB'. `up` rounds upwards, for what somebody has to provide."""
    unit, name = (_GIB, "GiB") if count >= _GIB else (_MIB, "MiB")
    tenths = -(-count * 10 // unit) if up else (count * 10 + unit // 2) // unit
    return f"{tenths // 10}.{tenths % 10} {name}"


def format_layers(layers: LayerRange) -> str:
    """'layers 0-3' (both ends included), or 'layer 3'."""
    if len(layers) == 1:
        return f"layer {layers.start}"
    return f"layers {layers.start}-{layers.end - 1}"


def node_reason(reasons: Sequence[tuple[DeviceCapacity, str]]) -> str:
    """A node's sentence, made of its devices'."""
    if len(reasons) == 1:
        return reasons[0][1]
    return ". ".join(f"On {device.device}: {reason}" for device, reason in reasons)


def stage_reason(stage: StagePlan, device: DeviceCapacity, *, ends_bytes: int | None) -> str:
    """For a device that holds layers. `ends_bytes` is None except on the device that holds the ends."""
    ends = "" if ends_bytes is None else f"; also holds both ends ({format_bytes(ends_bytes)})"
    used, limit = format_bytes(stage.total_bytes + (ends_bytes or 0)), format_bytes(device.limit_bytes)
    return f"{format_layers(stage.layers)}: {used} of its {limit} limit{ends}"


def empty_reason(device: DeviceCapacity, room_bytes: int, layer_bytes: int, *, ends_bytes: int | None) -> str:
    """For a device without layers: `room_bytes` is left there for layers, `layer_bytes` is what the smallest one takes.

    `ends_bytes` is None except on the device that holds the ends.
    """
    limit = format_bytes(device.limit_bytes)
    what = "no layers" if ends_bytes is None else f"both ends ({format_bytes(ends_bytes)}) and no layers"
    if room_bytes >= layer_bytes:
        return f"{what}: its share of the memory is less than a layer"
    room, needed = format_bytes(max(0, room_bytes)), format_bytes(layer_bytes, up=True)
    return f"{what}: its {limit} limit leaves {room} for layers, and the smallest takes {needed}"


def reserve_reason(token_s: float, with_it_s: float, *, ends_bytes: int | None = None) -> str:
    """For a node that could hold layers: what a token takes on the plan, and what it would take with this node too.

    `ends_bytes` is None except on the node that holds the ends.
    """
    ends = "" if ends_bytes is None else f"both ends ({format_bytes(ends_bytes)}) and no layers; "
    if with_it_s == token_s:
        return f"{ends}in reserve: the others are so much faster that its share is less than a layer"
    what = "would make a token slower" if with_it_s > token_s else "would gain less than a move costs"
    return f"{ends}in reserve: {what}: {format_ms(token_s)} -> {format_ms(with_it_s)}"


def format_ms(seconds: float) -> str:
    """'41 ms', or '0.41 ms' where that is little."""
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.2g} ms"


def misfit(model: str, needed_bytes: int, context_tokens: int, limits_bytes: int, missing_bytes: int, name: str) -> str:
    """For a model that fits nowhere: what it takes, what is there, what is missing, and where it would help."""
    return (
        f"'{model}' takes {format_bytes(needed_bytes, up=True)} with {context_tokens} tokens of context, and the nodes "
        f"may hold {format_bytes(limits_bytes)}: {format_bytes(missing_bytes, up=True)} more would do on '{name}'."
    )


def ends_misfit(model: str, ends_bytes: int, device: DeviceCapacity, missing_bytes: int) -> str:
    """For a head whose first device cannot even pay for the ends: no other device can help."""
    return (
        f"Both ends of '{model}' take {format_bytes(ends_bytes, up=True)} on '{device.name}', the head, which may hold "
        f"{format_bytes(device.limit_bytes)}: {format_bytes(missing_bytes, up=True)} more would do there."
    )
