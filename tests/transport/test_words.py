from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import PairingError
from transport.words import WORDS, make_code, parse_code


def test_256_distinct_words_of_plain_letters() -> None:
    assert len(set(WORDS)) == 256
    assert all(word.isascii() and word.isalpha() and word.islower() and 3 <= len(word) <= 8 for word in WORDS)


def test_no_word_begins_with_another() -> None:
    pairs = itertools.permutations(WORDS, 2)
    assert not [pair for pair in pairs if pair[0].startswith(pair[1])]


def test_any_two_words_of_a_length_differ_in_two_letters() -> None:
    pairs = [(a, b) for a, b in itertools.combinations(WORDS, 2) if len(a) == len(b)]
    assert not [(a, b) for a, b in pairs if sum(x != y for x, y in zip(a, b, strict=True)) < 2]


TYPED = [
    "4-otter-maple-drum",
    "4 otter maple drum",
    " 4-Otter-MAPLE-drum\n",
    "4ottermapledrum",
    "4 - otter_maple.drum",
    "04-otter-mapledrum",
]


@pytest.mark.parametrize("typed", TYPED)
def test_what_a_person_types_is_read_leniently(typed: str) -> None:
    assert parse_code(typed) == (4, "4-otter-maple-drum")


@given(st.integers(1, 99), st.integers())
def test_every_code_reads_back_without_its_hyphens(slot: int, seed: int) -> None:
    code = make_code(slot, random.Random(seed))
    assert parse_code(code.replace("-", "")) == (slot, code)


def test_a_misspelt_word_is_named_with_the_nearest() -> None:
    with pytest.raises(PairingError, match="'oter'") as raised:
        parse_code("4-oter-maple-drum")
    assert "'otter'" in raised.value.hint


@pytest.mark.parametrize(
    "typed", ["", "otter-maple-drum", "4", "4-otter", "4-otter-maple-drum-fox", "4" * 50, "-" * 9000]
)
def test_other_shapes_are_refused(typed: str) -> None:
    with pytest.raises(PairingError):
        parse_code(typed)


@given(st.text(max_size=60))
def test_any_text_is_a_code_or_a_pairing_error(typed: str) -> None:
    try:
        slot, code = parse_code(typed)
    except PairingError:
        return
    assert code.startswith(f"{slot}-")
