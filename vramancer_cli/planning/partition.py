"""Cutting layers into contiguous ranges over nodes in a given order: near their share, never over their room.

Integers only, so that every machine gets the same cut. Pure; never torch, sockets, clocks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate

from transport.types import LayerRange


def partition(
    layer_bytes: Sequence[int], rooms: Sequence[int], shares: Sequence[int] | None = None
) -> tuple[LayerRange, ...] | None:
    """One range per room in order, possibly empty, covering all layers; None when no contiguous cut fits.

    Each cut is the feasible one nearest to the room's share of what is still to be placed: in proportion to `shares`,
    by default the rooms themselves, as far as the rooms behind it can take theirs. A cut is feasible when
    this room can reach it and the rooms behind can take the rest: greedily from the back, which is exact because
    a shorter rest always fits where a longer one does. A negative room takes nothing.
    """
    sums = _sums(layer_bytes)
    needed_from = _needed_from(sums, rooms)
    if needed_from[0] > 0:
        return None
    shares = [max(0, share) for share in (rooms if shares is None else shares)]
    ranges: list[LayerRange] = []
    start = 0
    for index, room in enumerate(rooms):
        feasible = range(max(start, needed_from[index + 1]), _reach(sums, start, room) + 1)
        end = _nearest(sums, start, shares[index], sum(shares[index:]), feasible)
        ranges.append(LayerRange(start, end))
        start = end
    return tuple(ranges)


def gaps(layer_bytes: Sequence[int], rooms: Sequence[int]) -> tuple[LayerRange, ...]:
    """For each place before, between and behind the rooms: the least that one more node there would have to hold.

    The rooms before it are filled from the front, those behind it from the back; empty when they meet.
    """
    sums = _sums(layer_bytes)
    reached = accumulate(rooms, lambda start, room: _reach(sums, start, room), initial=0)
    pairs = zip(reached, _needed_from(sums, rooms), strict=True)
    return tuple(LayerRange(start, max(start, end)) for start, end in pairs)


def narrowed(layer_bytes: Sequence[int], gap: LayerRange, before: Sequence[int], behind: Sequence[int]) -> LayerRange:
    """What is left of a gap when the rooms `before` take what they can from its front, those `behind` from its back."""
    sums = _sums(layer_bytes[: gap.end])
    start, end = gap.start, _needed_from(sums, behind)[0]
    for room in before:
        start = _reach(sums, start, room)
    return LayerRange(start, max(start, end))


def _sums(layer_bytes: Sequence[int]) -> list[int]:
    return list(accumulate(layer_bytes, initial=0))


def _needed_from(sums: list[int], rooms: Sequence[int]) -> list[int]:
    """For each index, the smallest layer from which rooms[index:] can hold all the rest."""
    starts = [len(sums) - 1]
    for room in reversed(rooms):
        end = starts[-1]
        starts.append(bisect_left(sums, sums[end] - room, 0, end) if room >= 0 else end)
    return starts[::-1]


def _reach(sums: list[int], start: int, room: int) -> int:
    """The furthest end of a range from `start` that fits into `room`."""
    return bisect_right(sums, sums[start] + room, start + 1) - 1 if room >= 0 else start


def _nearest(sums: list[int], start: int, share: int, shares_left: int, feasible: range) -> int:
    """The end whose bytes are nearest to the part share / shares_left of the rest; the smaller of two."""
    wanted = (sums[-1] - sums[start]) * share
    return min(feasible, key=lambda end: (abs((sums[end] - sums[start]) * shares_left - wanted), end))
