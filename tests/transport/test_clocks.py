from __future__ import annotations

import pytest

from transport.clocks import SLACK_S, check_clocks, clock_text
from transport.errors import ClockError
from transport.identity import BACKDATE_S

NOON = 1_795_262_400.0  # 2026-11-21 12:00 UTC


@pytest.mark.parametrize("apart_s", [0, 2700, -2700])
def test_up_to_45_minutes_apart_both_ways_is_fine(apart_s: int) -> None:
    check_clocks(NOON + apart_s, NOON)


@pytest.mark.parametrize("apart_s", [2701, -2701, 10 * 365 * 86400, -NOON + 1, 2.0**40])
def test_more_is_refused_and_both_clocks_are_named(apart_s: float) -> None:
    with pytest.raises(ClockError) as raised:
        check_clocks(NOON + apart_s, NOON)
    assert clock_text(NOON + apart_s) in str(raised.value)
    assert "2026-11-21 12:00 UTC" in str(raised.value)
    assert raised.value.exit_code == 4
    assert raised.value.hint


def test_a_clock_that_was_not_said_is_not_held_against_anyone() -> None:
    check_clocks(0.0, NOON)


def test_certificates_start_as_much_earlier_as_clocks_may_differ() -> None:
    assert BACKDATE_S == SLACK_S == 45 * 60
