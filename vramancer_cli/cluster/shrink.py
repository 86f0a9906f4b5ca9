"""A device that can hold less than its node promised: another program has taken memory, or the device is gone.

What a node says in its heartbeats becomes the limit that plans go by, once it has lasted; and is taken back once there
has been room again for longer. Pure: `at` is an argument; never sockets, clocks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from transport.messages import NodeLoad
from vramancer_cli.cluster.records import NodeRecord

SHRINK_S: Final = 3.0
"""A limit falls after so long: what is missing for a moment only is no reason to move layers."""
GROW_S: Final = 60.0
"""It rises again after so long, so that a program that comes and goes does not move layers with it."""
SHARE: Final = 0.05
"""Less of a difference is none."""


def shrunk(record: NodeRecord, load: NodeLoad, at: float) -> NodeRecord:
    """The record after a heartbeat, with the limits that count now."""
    usual = record.usual_limits or record.limits
    wanted = _holdable(usual, load)
    if all(
        abs(now - then) <= SHARE * usual_bytes
        for now, then, usual_bytes in zip(wanted, record.limits, usual, strict=True)
    ):
        return record if record.differs_since is None else replace(record, differs_since=None)
    if record.differs_since is None:
        return replace(record, differs_since=at)
    falls = any(now < then for now, then in zip(wanted, record.limits, strict=True))
    if at - record.differs_since < (SHRINK_S if falls else GROW_S):
        return record
    return replace(record, limits=wanted, usual_limits=() if wanted == usual else usual, differs_since=None)


def _holdable(usual: tuple[int, ...], load: NodeLoad) -> tuple[int, ...]:
    """What the node says, no more than usual; the usual where it says nothing, or nearly that."""
    said = [device.holdable_bytes for device in load.devices]
    pairs = zip(usual, (*said, *[None] * (len(usual) - len(said))), strict=False)
    return tuple(limit if now is None or now >= limit * (1 - SHARE) else now for limit, now in pairs)
