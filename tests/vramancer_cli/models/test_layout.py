"""Which tensors a node reads."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from transport.types import LayerRange
from vramancer_cli.models.layout import TensorLayout

LAYOUT = TensorLayout(
    {"embed": "embed", "a.0": 0, "b.0": 0, "a.1": 1, "a.2": 2, "norm": "norm", "lm_head": "head", "inv_freq": "other"}
)


def test_a_range_owns_its_layers_only() -> None:
    assert LAYOUT.owned(LayerRange(0, 2), ends=False) == {"a.0", "b.0", "a.1"}
    assert LAYOUT.owned(LayerRange(1, 1), ends=False) == frozenset()


def test_the_ends_own_embedding_norm_and_head_and_nobody_the_rest() -> None:
    assert LAYOUT.owned(LayerRange(0, 0), ends=True) == {"embed", "norm", "lm_head"}
    assert "inv_freq" not in LAYOUT.owned(LayerRange(0, 3), ends=True)


@given(st.integers(0, 3), st.integers(0, 3))
def test_ranges_that_tile_the_layers_own_every_tensor_once(first: int, second: int) -> None:
    cuts = [0, *sorted((first, second)), 3]
    ranges = [LayerRange(start, end) for start, end in pairwise(cuts)]
    owned = [LAYOUT.owned(layers, ends=index == 0) for index, layers in enumerate(ranges)]
    assert sum(len(names) for names in owned) == len(LAYOUT.places) - 1
    assert frozenset().union(*owned) == LAYOUT.places.keys() - {"inv_freq"}
