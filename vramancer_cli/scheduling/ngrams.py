"""Where the last few tokens of a sequence stood before, found in bounded time however long it is.

Hash chains over pairs of tokens, as LZ77 compressors find repeats (RFC 1951, section 4). Pure; what a repeat is good
for is not known here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Final, NamedTuple

SHORTEST: Final = 2
LONGEST: Final = 8
"""So many tokens are compared: whether more are alike says little more of what comes next."""
CANDIDATES: Final = 12
"""So many of the last places with the same pair are looked at."""
_HEADS: Final = 1 << 14


class Match(NamedTuple):
    """The `length` tokens before `place` are those at the end; length 0 for none."""

    place: int
    length: int


NO_MATCH: Final = Match(0, 0)


class NgramIndex:
    """The tokens of one sequence, which only grow. 8 bytes a token, and 64 KiB."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._heads = array("i", [-1]) * _HEADS  # by hash of a pair: where it ended last
        self._before = array("i")  # by end of a pair, less one: where one with its hash ended before

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, place: int) -> int:
        return self._tokens[place]

    def append(self, token: int) -> None:
        head = self._hash(self._tokens[-1], token) if self._tokens else 0
        self._before.append(self._heads[head])
        self._tokens.append(token)
        self._heads[head] = len(self._tokens)

    def find(self) -> Match:
        """The longest repeat of the last tokens, the latest of several."""
        end = len(self._tokens)
        matches = (Match(place, self._alike(place, end)) for place in self._candidates())
        return max((match for match in matches if match.length >= SHORTEST), key=_length, default=NO_MATCH)

    def _candidates(self) -> Iterator[int]:
        place = self._before[-1] if self._before else -1
        for _ in range(CANDIDATES):
            if place < SHORTEST:
                return
            yield place
            place = self._before[place - 1]

    def _alike(self, place: int, end: int) -> int:
        tokens = self._tokens
        for length in range(min(place, LONGEST)):
            if tokens[place - 1 - length] != tokens[end - 1 - length]:
                return length
        return min(place, LONGEST)

    def _hash(self, first: int, second: int) -> int:
        return (first * 40_503 + second) & (_HEADS - 1)


def _length(match: Match) -> int:
    return match.length
