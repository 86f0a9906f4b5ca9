from __future__ import annotations

from typing import get_args

import pytest

from transport.types import WeightFormat
from vramancer_cli.models.quantisation import (
    INT4,
    INT8,
    INT8_GROUPED,
    TRIED_ELEMENTS,
    Format,
    Quantisable,
    format_of,
    quantising_bytes,
    saved_bytes,
    weight_format,
)
from vramancer_cli.settings import Quantize


def test_a_persons_choices_reach_every_format_of_the_wire_and_no_other() -> None:
    reached = {weight_format(choice, packed) for choice in get_args(Quantize) for packed in (True, False)}
    assert reached == set(get_args(WeightFormat))


def test_without_a_choice_packed_weights_stay_as_they_are_and_plain_ones_plain() -> None:
    assert (weight_format("auto", True), weight_format("auto", False)) == ("stored", "none")
    assert (weight_format("none", True), weight_format("int4", False)) == ("none", "int4")


def test_int8_has_a_scale_for_each_row_and_int4_two_numbers_for_each_group() -> None:
    part = Quantisable(outputs=10, inputs=256)
    assert part.held_bytes("int8", "bfloat16") == 2560 + 10 * 4
    sizes: dict[WeightFormat, int] = {"int4": 32, "int4-64": 64, "int4-128": 128}
    for quantize, size in sizes.items():
        assert part.held_bytes(quantize, "bfloat16") == 1280 + 2560 // size * 2 * 2
    assert (part.held_bytes("stored", "bfloat16"), part.held_bytes("none", "float32")) == (5120, 10240)


@pytest.mark.parametrize(("inputs", "group"), [(256, 128), (192, 64), (160, 32)])
def test_a_group_that_is_no_part_of_the_row_is_halved_until_it_is(inputs: int, group: int) -> None:
    assert format_of("int4-128", inputs) == Format(4, group)


@pytest.mark.parametrize(
    ("quantize", "stored", "held"),
    [
        ("stored", INT8_GROUPED, INT8_GROUPED), ("stored", INT4, INT4), ("stored", None, None),
        ("int8", INT8_GROUPED, INT8_GROUPED), ("int8", INT4, INT4), ("int8", None, INT8),
        ("int4", INT4, INT4), ("int4", INT8_GROUPED, INT4), ("int4-64", INT8_GROUPED, Format(4, 64)),
        ("int4-64", INT4, INT4), ("none", INT4, None),
    ],
)  # fmt: skip
def test_what_is_stored_in_as_few_bits_is_taken_over(
    quantize: WeightFormat, stored: Format | None, held: Format | None
) -> None:
    assert format_of(quantize, 256, stored) == held
    assert Quantisable(8, 256, 1, stored).is_taken_over(quantize) == (stored is not None and held == stored)


def test_what_is_saved_is_the_difference_to_the_dtype() -> None:
    parts = [Quantisable(10, 64), Quantisable(4, 32, count=3, stored=INT4)]
    assert saved_bytes(parts, "stored", "bfloat16") == 3 * (4 * 32 * 2 - 4 * (16 + 4))
    assert saved_bytes(parts, "int8", "float32") == 640 * 4 - (640 + 40) + 3 * (4 * 32 * 4 - 4 * (16 + 4))


def test_quantising_takes_the_layer_as_it_is_read_and_as_it_is_computed() -> None:
    parts = [Quantisable(outputs=5, inputs=64, count=2)]
    same = quantising_bytes(parts, "int8", 700, "bfloat16", "bfloat16")
    assert same == 700 * 2 + 320 * 16
    assert quantising_bytes(parts, "int8", 700, "float32", "bfloat16") == same + 700 * 4


def test_a_weight_that_is_taken_over_is_never_in_the_plans_dtype() -> None:
    parts = [Quantisable(100, 10_000_000, stored=INT4), Quantisable(5, 64)]
    taken = quantising_bytes(parts, "stored", 10**9 + 320, "float32", "float32")
    assert taken == 320 * 4 + 10**9 * 5
    assert quantising_bytes(parts, "none", 10**9 + 320, "float32", "float32") > 4 * 10**9


def test_a_large_weight_is_tried_in_part_and_packed_as_a_whole() -> None:
    large, huge = [Quantisable(5, 10**6, 200)], [Quantisable(1000, 10**6)]
    assert quantising_bytes(large, "int8", 0, "float32", "float32") == TRIED_ELEMENTS * 16
    assert quantising_bytes(huge, "int8", 0, "float32", "float32") == 10**9


def test_a_format_is_called_by_its_bits_and_its_groups() -> None:
    assert [str(held) for held in (INT8, INT8_GROUPED, Format(4, 64))] == [
        "int8",
        "int8 in groups of 32",
        "int4 in groups of 64",
    ]
