"""Cuts against brute force: found whenever one exists, never over a room, near the share."""

from __future__ import annotations

from itertools import combinations_with_replacement, pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from transport.types import LayerRange
from vramancer_cli.planning.partition import gaps, narrowed, partition

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=7)
ROOMS = st.lists(st.integers(-3, 25), min_size=1, max_size=4)


def cuts(layers: int, rooms: int) -> list[list[LayerRange]]:
    inner = combinations_with_replacement(range(layers + 1), rooms - 1)
    return [[LayerRange(a, b) for a, b in pairwise((0, *cut, layers))] for cut in inner]


def fits(sizes: list[int], rooms: list[int], ranges: list[LayerRange]) -> bool:
    pairs = zip(rooms, ranges, strict=True)
    return all(not len(r) or sum(sizes[r.start : r.end]) <= room for room, r in pairs)


@given(SIZES, ROOMS)
@example([0, 0], [-1, 0])
@example([5, 1, 1, 1], [3, 5])
def test_a_cut_is_found_exactly_when_one_exists_and_it_fits(sizes: list[int], rooms: list[int]) -> None:
    found = partition(sizes, rooms)
    possible = [cut for cut in cuts(len(sizes), len(rooms)) if fits(sizes, rooms, cut)]
    assert (found is None) == (not possible)
    assert found is None or list(found) in possible


@given(SIZES, ROOMS, st.integers(0, 4))
def test_what_fits_still_fits_beside_one_room_more(sizes: list[int], rooms: list[int], position: int) -> None:
    if partition(sizes, rooms) is not None:
        more = [*rooms[:position], 0, *rooms[position:]]
        assert partition(sizes, more) is not None


def lengths(sizes: list[int], rooms: list[int]) -> list[int]:
    found = partition(sizes, rooms)
    assert found is not None
    return [len(layers) for layers in found]


def test_shares_are_in_proportion_to_room() -> None:
    assert lengths([10] * 8, [100, 100]) == [4, 4]
    assert lengths([10] * 8, [300, 100]) == [6, 2]
    assert lengths([10] * 8, [100, 100, 200]) == [2, 2, 4]
    assert lengths([40, 10, 10, 10, 10], [100, 100]) == [1, 4]  # by bytes, not by count


def test_a_share_that_does_not_fit_moves_on() -> None:
    assert lengths([30, 30, 10], [35, 60]) == [1, 2]
    assert lengths([10] * 8, [20, 1000]) == [0, 8]
    assert lengths([10] * 8, [20, 60]) == [2, 6]


@given(st.integers(1, 12), st.lists(st.integers(100, 400), min_size=1, max_size=4))
def test_with_ample_room_every_share_is_within_a_layer(layers: int, rooms: list[int]) -> None:
    rooms = [room * layers for room in rooms]  # any of them could hold everything
    start = 0
    for index, count in enumerate(lengths([100] * layers, rooms)):
        share = (layers - start) * rooms[index] / sum(rooms[index:])
        assert abs(count - share) <= 0.5 + 1e-9
        start += count


@given(SIZES, ROOMS)
def test_a_gap_is_the_least_that_one_more_room_there_must_hold(sizes: list[int], rooms: list[int]) -> None:
    for position, layers in enumerate(gaps(sizes, rooms)):
        needed = sum(sizes[layers.start : layers.end])
        if len(layers):
            assert partition(sizes, [*rooms[:position], needed, *rooms[position:]]) is not None
            assert partition(sizes, [*rooms[:position], needed - 1, *rooms[position:]]) is None
        else:
            assert partition(sizes, rooms) is not None


@given(SIZES, ROOMS, st.lists(st.integers(-3, 25), max_size=3), st.lists(st.integers(-3, 25), max_size=3), st.data())
def test_a_narrowed_gap_is_what_one_room_among_several_must_hold(
    sizes: list[int], rooms: list[int], before: list[int], behind: list[int], data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(rooms)))
    left = narrowed(sizes, gaps(sizes, rooms)[position], before, behind)
    whole = gaps(sizes, [*rooms[:position], *before, *behind, *rooms[position:]])[position + len(before)]
    assert left == whole or not (len(left) or len(whole))
