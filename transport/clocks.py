"""Two machines' clocks: how far apart they may be, and the sentence when they are further; how far apart they are.

Pure: seconds in. Never sockets or the machine's own clock here.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from transport.errors import ClockError

SLACK_S: Final = 45 * 60
"""Certificates start this much before they are made: two home machines seldom agree on the time."""

EXCHANGES: Final = 8
DRIFT: Final = 15e-6
"""Seconds by which two clocks may part in a second (RFC 5905's PHI)."""


@dataclass(frozen=True, slots=True)
class Offset:
    """Another clock shows `offset_s` more than the own one, give or take `error_s`."""

    offset_s: float
    error_s: float


class ClockFilter:
    """How far another machine's monotonic clock is from the own one, by what heartbeats say (RFC 5905, 10: of the last
    eight exchanges the one that took least tells most)."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Offset]] = deque(maxlen=EXCHANGES)

    def note(self, sent_s: float, other_s: float, received_s: float) -> None:
        """Asked and answered at these times of the own clock; the other one showed `other_s` in between."""
        self._seen.append((received_s, Offset(other_s - (sent_s + received_s) / 2, (received_s - sent_s) / 2)))

    def at(self, now_s: float) -> Offset | None:
        """By the own clock; None before the first exchange."""
        aged = (Offset(seen.offset_s, seen.error_s + DRIFT * (now_s - at_s)) for at_s, seen in self._seen)
        return min(aged, key=lambda offset: offset.error_s, default=None)


def check_clocks(other_s: float, own_s: float, whose: str = "the master") -> None:
    """Raises ClockError, naming both, when they are more than 45 minutes apart. `other_s` 0: not said."""
    if other_s and abs(other_s - own_s) > SLACK_S:
        raise ClockError(
            f"The clock of {whose} says {clock_text(other_s)}, this machine's {clock_text(own_s)}: "
            f"that is more than {SLACK_S // 60} minutes apart."
        )


def clock_text(unix_s: float) -> str:
    """As `2026-11-21 12:36 UTC`; a number that is no date is shown as it is."""
    try:
        return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{unix_s:.0f} s since 1970"
