"""How many tokens a trip through all stages gives a sequence, and how well they were guessed beforehand."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

from vramancer_cli.scheduling.step_parts import Emitted

REMEMBERED: Final = 33


class TripCount:
    """Counted since the node started; a stop token is a token here."""

    def __init__(self) -> None:
        self._trips = self._tokens = self._drafted = self._right = 0
        self._took_s: deque[float] = deque(maxlen=REMEMBERED)

    def add(self, emitted: Emitted) -> None:
        tokens = len(emitted.token_ids) + (emitted.finish_reason == "stop")
        self._trips += tokens > 0
        self._tokens += tokens
        self._drafted += emitted.drafted
        self._right += emitted.right

    def took(self, seconds: float) -> None:
        """A trip of one sequence's next token, which met no other on its way."""
        self._took_s.append(seconds)

    def start_afresh(self) -> None:
        """The way is another one now."""
        self._took_s.clear()

    @property
    def trip_s(self) -> float | None:
        """What a trip took lately, the median; None before the first on this plan."""
        return median(self._took_s) if self._took_s else None

    @property
    def tokens_per_trip(self) -> float | None:
        """None before the first trip."""
        return self._tokens / self._trips if self._trips else None

    @property
    def draft_acceptance(self) -> float | None:
        """The share of the guessed tokens that were right; None where none was guessed."""
        return self._right / self._drafted if self._drafted else None
