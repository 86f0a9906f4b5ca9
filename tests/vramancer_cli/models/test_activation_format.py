"""Which format hidden states cross a link in, and what it takes."""

from __future__ import annotations

import pytest

from transport.types import ActivationChoice, ActivationFormat
from vramancer_cli.models.activation_format import crossing_bytes, format_for, resolved

BOTH: tuple[ActivationFormat, ...] = ("int8", "int4")
PREFILL_BYTES = 256 * 4096 * 2
ROW_BYTES = 4096 * 2
GBIT = 125_000_000


def chosen(
    choice: ActivationChoice = "auto",
    size_bytes: int = PREFILL_BYTES,
    bytes_per_s: int = GBIT,
    rounding_s: float = 0.002,
    known: tuple[ActivationFormat, ...] = BOTH,
) -> ActivationFormat:
    return format_for(choice, known, "bfloat16", size_bytes, bytes_per_s, lambda _: rounding_s)


def test_what_each_format_takes() -> None:
    assert crossing_bytes(PREFILL_BYTES, "bfloat16", "plain") == PREFILL_BYTES
    assert crossing_bytes(256, "bfloat16", "int8") == 128 + 2
    assert crossing_bytes(512, "float32", "int8") == 128 + 4
    assert crossing_bytes(64, "float16", "int4") == 16 + 2


@pytest.mark.parametrize(
    ("bytes_per_s", "expected"),
    [(GBIT // 10, "int8"), (GBIT, "int8"), (5 * GBIT // 2, "int8"), (10 * GBIT, "plain"), (100 * GBIT, "plain")],
)
def test_a_prompts_chunk_is_rounded_where_the_link_is_slower_than_that(bytes_per_s: int, expected: str) -> None:
    assert chosen(bytes_per_s=bytes_per_s) == expected


def test_a_single_row_is_not_worth_it_but_on_the_slowest_links() -> None:
    assert chosen(size_bytes=ROW_BYTES, rounding_s=1e-4) == "plain"
    assert chosen(size_bytes=ROW_BYTES, rounding_s=1e-4, bytes_per_s=GBIT // 20) == "int8"


def test_nothing_is_rounded_before_the_link_was_measured() -> None:
    def never(_: ActivationFormat) -> float:
        raise AssertionError("there is nothing to weigh up")

    assert format_for("auto", BOTH, "bfloat16", PREFILL_BYTES, 0, never) == "plain"


def test_what_a_person_asked_for_is_used_wherever_both_ends_know_it() -> None:
    assert chosen("int4", bytes_per_s=0) == "int4"
    assert chosen("int8", size_bytes=64, bytes_per_s=100 * GBIT, rounding_s=9.0) == "int8"
    assert chosen("int4", known=("int8",)) == "plain"
    assert chosen("plain", bytes_per_s=1000) == "plain"
    assert chosen(bytes_per_s=1000, known=()) == "plain"


def test_a_float32_plan_rounds_only_what_a_person_asked_for() -> None:
    assert resolved("auto", "float32") == "plain"
    assert resolved("int8", "float32") == "int8"
    assert resolved("auto", "bfloat16") == "auto"
