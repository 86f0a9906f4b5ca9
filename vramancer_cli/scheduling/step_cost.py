"""What one more token in a step costs, learnt from the steps that came back. Pure: seconds are handed in."""

from __future__ import annotations

from typing import Final

KEPT: Final = 0.98
"""What a step weighs after the next one: the last fifty or so count."""
PRIOR_PER_TOKEN: Final = 0.1
"""A token's time as a share of a step's fixed time, as long as steps of unequal size have not shown another one."""
PRIOR_SPREAD: Final = 4.0
"""The sum of squares, in tokens, that steps must differ by to count as much as the prior. It fades like everything
that was seen; so what once looked too expensive is tried again, rarely."""
SPIKE: Final = 3.0
"""A step longer than so many mean ones says something of the machine, not of its size."""


class StepCost:
    """A line through the steps seen, `fixed + tokens * per_token` seconds: least squares with exponential forgetting
    (West 1979)."""

    def __init__(self) -> None:
        self._weight = 0.0
        self._mean_tokens = 1.0
        self._mean_s = 1.0
        self._spread = 0.0
        self._together = 0.0

    def note(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        if seconds <= 0:
            return
        if self._weight:
            seconds = min(seconds, SPIKE * self._mean_s)
        self._weight = self._weight * KEPT + 1
        off_tokens, off_s = tokens - self._mean_tokens, seconds - self._mean_s
        self._mean_tokens += off_tokens / self._weight
        self._mean_s += off_s / self._weight
        self._spread = self._spread * KEPT + off_tokens * (tokens - self._mean_tokens)
        self._together = self._together * KEPT + off_tokens * (seconds - self._mean_s)

    def pays(self, chance: float, expected: float, tokens: int) -> bool:
        """Whether one more token, which yields one with this chance, makes a step of `tokens` tokens that is expected
        to yield `expected` yield more per second."""
        per_token = self._per_token()
        step_s = max(self._mean_s + per_token * (tokens - self._mean_tokens), per_token * tokens)
        return chance * step_s > expected * per_token

    def _per_token(self) -> float:
        prior = PRIOR_PER_TOKEN * self._mean_s / (1 + PRIOR_PER_TOKEN * self._mean_tokens)
        slope = (self._together + PRIOR_SPREAD * prior) / (self._spread + PRIOR_SPREAD)
        return min(max(slope, 0.0), self._mean_s / self._mean_tokens)
