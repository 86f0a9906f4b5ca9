"""Which devices hold layers at all, and how many each: as one answer is fastest, and with room for several.

Pure and deterministic; never torch, sockets, clocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from transport.types import LayerRange, NodeId
from vramancer_cli.planning.facts import DeviceCapacity
from vramancer_cli.planning.partition import partition
from vramancer_cli.planning.speed import Held, Speeds

ROOM_CONTEXTS: Final = 4
"""Room for so many whole contexts is worth more than speed; more room than that is not."""
_TRIES: Final = 8
"""So many devices beyond the fewest that hold the model may be worth it; with each one more the trips add up."""
_SHARES: Final = 1 << 20
"""Shares are integers, so that every machine gets the same cut."""


@dataclass(frozen=True, slots=True)
class Choice:
    """`ranges`: a range for each device, empty where it is left out. `slower`: for each node without layers, what a
    token takes as chosen, and what it would with that node too (seconds)."""

    ranges: tuple[LayerRange, ...]
    slower: Mapping[NodeId, tuple[float, float]]


def choose(
    layer_bytes: Sequence[int], rooms: Sequence[int], devices: Sequence[DeviceCapacity], speeds: Speeds
) -> Choice | None:
    """None where all devices together have no room for layers of so many bytes.

    Devices are taken in order of what a layer takes there, trips included; the first so many of them, no more than
    make a token fastest, get layers in proportion to their speed, as far as their rooms go.
    """
    cuts = _Cuts(tuple(layer_bytes), tuple(rooms), tuple(devices), speeds)
    ranked = sorted(range(len(devices)), key=cuts.rank)
    fewest = cuts.fewest(ranked)
    if fewest is None:
        return None
    taken = [frozenset(ranked[:count]) for count in range(fewest, min(len(ranked), fewest + _TRIES) + 1)]
    best = min(taken, key=lambda chosen: (cuts.token_s(chosen), len(chosen)))
    return Choice(cuts.ranges(best), _slower(cuts, best))


def _slower(cuts: _Cuts, best: frozenset[int]) -> dict[NodeId, tuple[float, float]]:
    ranges = cuts.ranges(best)
    holding = {cuts.devices[index].node for index, layers in enumerate(ranges) if len(layers)}
    token_s = cuts.token_s(best)
    others: dict[NodeId, set[int]] = {}
    for index, device in enumerate(cuts.devices):
        if device.node not in holding and cuts.rooms[index] >= min(cuts.layer_bytes):
            others.setdefault(device.node, set()).add(index)
    return {node: (token_s, cuts.token_s(best | indices)) for node, indices in others.items()}


@dataclass(frozen=True, slots=True)
class _Cuts:
    """Cuts of one model over some of the devices, which are given by their numbers."""

    layer_bytes: tuple[int, ...]
    rooms: tuple[int, ...]
    devices: tuple[DeviceCapacity, ...]
    speeds: Speeds

    def rank(self, index: int) -> tuple[float, int]:
        """What a layer takes on the device when it holds all that it can, its trip to the head and back included."""
        device = self.devices[index]
        mean_bytes = sum(self.layer_bytes) / len(self.layer_bytes)
        most = min(len(self.layer_bytes), max(1.0, self.rooms[index] / mean_bytes))
        trip_s = self.speeds.round_trip_s[device.node]
        return self.speeds.layer_s[device.place] + trip_s / most, index

    def fewest(self, ranked: Sequence[int]) -> int | None:
        """How many of the first are needed to hold the model; one more never holds less."""
        low, high = 1, len(ranked)
        if self._cut(frozenset(ranked)) is None:
            return None
        while low < high:
            middle = (low + high) // 2
            if self._cut(frozenset(ranked[:middle])) is None:
                low = middle + 1
            else:
                high = middle
        return low

    def ranges(self, chosen: frozenset[int]) -> tuple[LayerRange, ...]:
        ranges = self._cut(chosen)
        assert ranges is not None
        return ranges

    def token_s(self, chosen: frozenset[int]) -> float:
        held: list[Held] = [
            (device.place, len(layers)) for device, layers in zip(self.devices, self.ranges(chosen), strict=True)
        ]
        return self.speeds.token_s(held)

    def _cut(self, chosen: frozenset[int]) -> tuple[LayerRange, ...] | None:
        rooms = [room if index in chosen else -1 for index, room in enumerate(self.rooms)]
        return partition(self.layer_bytes, rooms, self._shares(rooms))

    def _shares(self, rooms: Sequence[int]) -> list[int]:
        """Bytes in proportion to speed; what does not fit into one device's room goes to the others."""
        speeds = [1 / self.speeds.layer_s[device.place] for device in self.devices]
        shares = [0.0] * len(rooms)
        left_bytes = float(sum(self.layer_bytes))
        left: list[int] = [index for index, room in enumerate(rooms) if room > 0]
        while left and left_bytes > 0:
            wanted = {index: speeds[index] / sum(speeds[other] for other in left) * left_bytes for index in left}
            full = {index: float(rooms[index]) for index in left if wanted[index] >= rooms[index]}
            for index, share in (full or wanted).items():
                shares[index] = share
            left_bytes -= sum(full.values())
            left = [index for index in left if index not in full] if full else []
        return [int(share / max(1.0, sum(self.layer_bytes)) * _SHARES) for share in shares]
