"""How fast large payloads come in over a link. Pure: the caller brings the clock."""

from __future__ import annotations

from typing import Final

LEAST_BYTES: Final = 64 << 10
"""A smaller payload may have been waiting in the system as a whole before its first byte was read."""
_FADES: Final = 0.8
"""What earlier payloads count for when the next one is in: a step in a link's speed is half seen after three."""
_CHANGE: Final = 0.2


class SpeedGauge:
    """Bytes over time of payloads, the latest ones counting most. Times in seconds, by one clock."""

    def __init__(self) -> None:
        self._bytes = self._seconds = 0.0
        self._coming: tuple[int, float] | None = None
        self._told = 0

    def begin(self, size_bytes: int, now: float) -> None:
        """A payload's first bytes may come from now on. One that is too small to tell is not counted."""
        self._coming = (size_bytes, now) if size_bytes >= LEAST_BYTES else None

    def end(self, now: float) -> None:
        """All of it is here. Without a `begin`: no effect."""
        if self._coming is not None:
            size_bytes, began_s = self._coming
            self._bytes = _FADES * self._bytes + size_bytes
            self._seconds = _FADES * self._seconds + (now - began_s)
            self._coming = None

    def news(self) -> int | None:
        """Bytes a second, if that is not about what was told before."""
        if not self._seconds:
            return None
        speed = max(1, int(self._bytes / self._seconds))
        if abs(speed - self._told) <= _CHANGE * self._told:
            return None
        self._told = speed
        return speed
