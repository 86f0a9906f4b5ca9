"""NgramIndex: the longest, latest repeat of the last tokens, found without looking at all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vramancer_cli.scheduling.ngrams import CANDIDATES, LONGEST, NO_MATCH, SHORTEST, Match, NgramIndex


def index(*tokens: int) -> NgramIndex:
    made = NgramIndex()
    for token in tokens:
        made.append(token)
    return made


def test_too_little_repeats_nothing() -> None:
    assert index().find() == index(1).find() == index(1, 1).find() == index(1, 2, 2).find() == NO_MATCH
    assert index(1, 1, 1).find() == Match(2, 2), "a repeat may overlap what it repeats"


def test_the_longest_repeat_wins_and_of_equal_ones_the_latest() -> None:
    assert index(5, 1, 2, 3, 9, 7, 2, 3, 8, 1, 2, 3).find() == Match(4, 3)
    assert index(7, 2, 3, 8, 9, 2, 3, 4, 2, 3).find() == Match(7, 2)


def test_a_long_repeat_counts_as_the_longest_that_is_compared() -> None:
    assert index(*range(20), *range(20)).find() == Match(20, LONGEST)


def test_of_a_pair_that_is_everywhere_only_the_last_places_are_looked_at() -> None:
    found = index(4, 1, 2, *(0, 1, 2) * (CANDIDATES + 5), 4, 1, 2).find()
    assert found.length == SHORTEST


@given(st.lists(st.integers(0, 3), max_size=40))
def test_what_is_found_is_what_a_search_through_everything_finds(tokens: list[int]) -> None:
    found = index(*tokens).find()
    alike = [
        (length, place)
        for place in range(1, len(tokens))
        for length in range(SHORTEST, min(place, LONGEST) + 1)
        if tokens[place - length : place] == tokens[-length:]
    ]
    pairs = [place for place in range(SHORTEST, len(tokens)) if tokens[place - SHORTEST : place] == tokens[-SHORTEST:]]
    longest, place = max((pair for pair in alike if pair[1] in pairs[-CANDIDATES:]), default=(0, 0))
    assert found == Match(place, longest)


def test_pairs_that_share_a_hash_are_told_apart() -> None:
    assert index(0, 40_503, 7, 1, 0).find() == NO_MATCH
