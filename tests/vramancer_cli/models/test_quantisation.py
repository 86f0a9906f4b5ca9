from __future__ import annotations

from typing import get_args

from transport.types import WeightFormat
from vramancer_cli.models.quantisation import TRIED_ELEMENTS, Quantisable
from vramancer_cli.settings import Quantize


def test_a_person_may_choose_every_format_of_the_wire() -> None:
    assert get_args(Quantize) == get_args(WeightFormat)


def test_int8_has_a_scale_for_each_row_and_int4_two_numbers_for_each_group() -> None:
    part = Quantisable(parameters=640, rows=10)
    assert part.held_bytes("int8") == 640 + 10 * 4
    assert part.held_bytes("int4") == 320 + 20 * 2 * 2


def test_quantising_takes_the_layer_as_it_is_read_and_as_it_is_computed() -> None:
    part = Quantisable(parameters=640, rows=10, largest=320)
    same = part.quantising_bytes(700, "bfloat16", "bfloat16")
    assert same == 700 * 2 + 320 * 16
    assert part.quantising_bytes(700, "float32", "bfloat16") == same + 700 * 4


def test_a_large_weight_is_tried_in_part_and_packed_as_a_whole() -> None:
    large, huge = Quantisable(10**9, 1, 5 * 10**6), Quantisable(10**9, 1, 10**9)
    assert large.quantising_bytes(0, "float32", "float32") == TRIED_ELEMENTS * 16
    assert huge.quantising_bytes(0, "float32", "float32") == 10**9


def test_two_together_have_the_larger_ones_largest_weight() -> None:
    assert Quantisable(10, 2, 5) + Quantisable(7, 1, 7) == Quantisable(17, 3, 7)
