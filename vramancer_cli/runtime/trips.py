"""How many tokens a trip through all stages gives a sequence, and how well they were guessed beforehand."""

from __future__ import annotations

from vramancer_cli.scheduling.step_parts import Emitted


class TripCount:
    """Counted since the node started; a stop token is a token here."""

    def __init__(self) -> None:
        self._trips = self._tokens = self._drafted = self._right = 0

    def add(self, emitted: Emitted) -> None:
        tokens = len(emitted.token_ids) + (emitted.finish_reason == "stop")
        self._trips += tokens > 0
        self._tokens += tokens
        self._drafted += emitted.drafted
        self._right += emitted.right

    @property
    def tokens_per_trip(self) -> float | None:
        """None before the first trip."""
        return self._tokens / self._trips if self._trips else None

    @property
    def draft_acceptance(self) -> float | None:
        """The share of the guessed tokens that were right; None where none was guessed."""
        return self._right / self._drafted if self._drafted else None
