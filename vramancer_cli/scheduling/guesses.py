"""Guesses at the next tokens of one sequence, made from its own text, and how likely each is to be right.

Prompt lookup decoding (Saxena 2023): where the last few tokens stood before, what followed them then is the guess. It
needs no second model, and is good where an answer repeats its prompt or itself. How likely a guess is to be right is
learnt by guessing silently at every token, also at those that are not drafted: so nothing needs to be tried in earnest
to find out that it pays, or no longer does. Pure; whether guesses are worth their cost is decided in `drafting`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Final, NamedTuple

from vramancer_cli.scheduling.ngrams import LONGEST, NO_MATCH, Match, NgramIndex

KEPT: Final = 0.9
"""What an outcome weighs after the next one of its kind: the last ten or so count."""
PRIOR_OUTCOMES: Final = 2.0


class Guess(NamedTuple):
    """`chance`: that this token comes, and all guessed before it."""

    token: int
    chance: float


class Guesses:
    """Of one sequence; costs nothing before the first `read`."""

    def __init__(self) -> None:
        self._index: NgramIndex | None = None
        self._match = NO_MATCH
        self._right = [0.0] * (LONGEST + 1)
        self._outcomes = [0.0] * (LONGEST + 1)

    @property
    def read_tokens(self) -> int:
        return len(self._index) if self._index else 0

    def read(self, tokens: Iterable[int]) -> None:
        """Go on with the sequence's next tokens. The first ones, the prompt, say nothing of how well guesses do."""
        if self._index is None:
            self._index = NgramIndex()
            for token in tokens:
                self._index.append(token)
            self._match = self._index.find()
            return
        for token in tokens:
            self._follow(self._index, token)

    def ahead(self) -> Iterator[Guess]:
        """One guess after the other, without end; none where nothing is alike. A repeat may overlap what it repeats."""
        index, match = self._index, self._match
        if index is None or not match.length:
            return
        guessed: list[int] = []
        chance = 1.0
        for offset in count():
            place = match.place + offset
            guessed.append(index[place] if place < len(index) else guessed[place - len(index)])
            chance *= self._chance(min(match.length + offset, LONGEST))
            yield Guess(guessed[-1], chance)

    def _follow(self, index: NgramIndex, token: int) -> None:
        place, length = self._match
        right = length > 0 and index[place] == token
        if length:
            self._note(length, right)
        index.append(token)
        self._match = Match(place + 1, min(length + 1, LONGEST)) if right else index.find()

    def _note(self, length: int, right: bool) -> None:
        self._right[length] = self._right[length] * KEPT + right
        self._outcomes[length] = self._outcomes[length] * KEPT + 1

    def _chance(self, length: int) -> float:
        """That the token behind `length` alike ones is the same again."""
        # Of text in general, before this one has shown what it is like: two alike tokens say nothing by themselves.
        expected = (length - 2) / (length + 2)
        return (self._right[length] + PRIOR_OUTCOMES * expected) / (self._outcomes[length] + PRIOR_OUTCOMES)
