"""Guesses: what followed before is guessed again, and trusted as far as it has been right."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import pytest

from vramancer_cli.scheduling.guesses import Guess, Guesses

FILE = tuple(range(100, 140))


def reading(prompt: Iterable[int], *answer: int) -> Guesses:
    guesses = Guesses()
    guesses.read(prompt)
    guesses.read(answer)
    return guesses


def ahead(guesses: Guesses, count: int) -> list[Guess]:
    return list(islice(guesses.ahead(), count))


def test_nothing_is_guessed_where_nothing_repeats() -> None:
    assert ahead(Guesses(), 3) == ahead(reading(FILE), 3) == ahead(reading(FILE, 7), 3) == []


def test_a_copy_of_the_prompt_is_foretold_from_its_second_token_on() -> None:
    guesses = reading((*FILE, 7), 110, 111)
    assert [guess.token for guess in ahead(guesses, 4)] == [112, 113, 114, 115]
    assert guesses.read_tokens == len(FILE) + 3


def test_a_repeat_goes_on_into_itself() -> None:
    guesses = reading((1, 2, 3, 1, 2, 3, 1, 2))
    assert [guess.token for guess in ahead(guesses, 7)] == [3, 1, 2, 3, 1, 2, 3]


def test_chances_fall_with_distance_and_rise_with_what_was_right() -> None:
    first = ahead(reading((*FILE, 7), 100, 101, 102), 9)
    later = ahead(reading((*FILE, 7), *FILE[:30]), 9)
    for chances in ([guess.chance for guess in first], [guess.chance for guess in later]):
        assert chances == sorted(chances, reverse=True)
        assert all(0 < chance < 1 for chance in chances)
    assert first[0].chance < 0.4 and later[0].chance > 0.9


def test_what_was_wrong_again_and_again_is_not_believed() -> None:
    pairs = [token for number in range(20) for token in (50, 51, 200 + number)]
    guesses = reading((50, 51, 52), *pairs, 50, 51)
    [guess] = ahead(guesses, 1)
    assert guess.token == 219 and guess.chance < 0.1


def test_an_edit_is_followed_by_the_copy_again_after_two_tokens() -> None:
    guesses = reading((*FILE, 7), *FILE[:20], 999, *FILE[21:23])
    assert [guess.token for guess in ahead(guesses, 2)] == [FILE[23], FILE[24]]


@pytest.mark.parametrize("size", [1, 5])
def test_reading_in_any_portions_is_the_same(size: int) -> None:
    answer = (*FILE[:9], 3, *FILE[4:20], 1, 2)
    parts = reading((*FILE, 7))
    for first in range(0, len(answer), size):
        parts.read(answer[first : first + size])
    assert ahead(parts, 5) == ahead(reading((*FILE, 7), *answer), 5)
