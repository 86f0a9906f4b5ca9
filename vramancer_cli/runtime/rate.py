"""Tokens per second over the last seconds, from the loop's clock."""

from __future__ import annotations

from collections import deque


class TokenRate:
    """A sliding window of `window_s` seconds; 0.0 when nothing was generated in it."""

    def __init__(self, window_s: float = 5.0) -> None:
        self._window_s = window_s
        self._counts: deque[tuple[float, int]] = deque()

    def add(self, tokens: int, now: float) -> None:
        self._counts.append((now, tokens))
        self._forget(now)

    def per_second(self, now: float) -> float:
        self._forget(now)
        if len(self._counts) < 2:
            return 0.0
        span_s = self._counts[-1][0] - self._counts[0][0]
        # The first entry opens the span: its tokens were made before it.
        made = sum(count for _, count in self._counts) - self._counts[0][1]
        return made / span_s if span_s > 0 else 0.0

    def _forget(self, now: float) -> None:
        while self._counts and self._counts[0][0] < now - self._window_s:
            self._counts.popleft()
