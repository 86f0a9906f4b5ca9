from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from commands.layer_bar import Segment, bar, boundaries, cell_of


def segments(*edges: int) -> list[Segment]:
    pairs = itertools.pairwise(edges)
    return [Segment(str(i), f"n{i}", pair, 1.0, "ABCDEFGHIJ"[i % 10], "") for i, pair in enumerate(pairs)]


@given(st.integers(1, 300), st.integers(20, 300), st.data())
def test_cells_are_shared_without_gap_or_overlap(layer_count: int, cells: int, data: st.DataObject) -> None:
    cuts = data.draw(st.sets(st.integers(1, max(1, layer_count - 1)), max_size=8)) if layer_count > 1 else set()
    held = segments(*sorted({0, layer_count, *cuts}))
    line = bar(held, layer_count, cells, ".").plain
    assert len(line) == cells
    assert "." not in line
    for segment in held:
        share = (segment.layers[1] - segment.layers[0]) * cells / layer_count
        assert abs(line.count(segment.fill) - share) <= 1


def test_a_gap_shows() -> None:
    first, last = segments(0, 2, 6, 8)[0], segments(0, 2, 6, 8)[2]
    assert bar([first, last], 8, 16, ".").plain == "AAAA........CCCC"


def test_loading_shows_how_far_it_is() -> None:
    loading = Segment("a", "a", (0, 8), 0.25, "A", "")
    assert bar([loading], 8, 16, ".").plain == "AAAA" + "." * 12


def test_boundaries_never_touch() -> None:
    held = segments(0, 1, 2, 3, 100)
    line = boundaries(held, 100, 40).plain
    assert len(line) == 40
    assert line.split() == ["0", "2", "100"] or line.split() == ["0", "3", "100"] or line.split() == ["0", "100"]


def test_a_layer_begins_where_the_one_before_ends() -> None:
    assert [cell_of(layer, 3, 80) for layer in range(4)] == [0, 27, 53, 80]
