"""Two machines' clocks: how far apart they may be, and the sentence when they are further.

Pure: Unix seconds in. Never sockets or the machine's own clock here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from transport.errors import ClockError

SLACK_S: Final = 45 * 60
"""Certificates start this much before they are made: two home machines seldom agree on the time."""


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
