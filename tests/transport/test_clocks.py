from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.clocks import DRIFT, EXCHANGES, SLACK_S, ClockFilter, check_clocks, clock_text
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


def test_the_quickest_exchange_says_best_how_far_another_clock_is() -> None:
    clock = ClockFilter()
    assert clock.at(0.0) is None
    clock.note(10.0, 510.3, 10.4)  # 0.4 s on the way, most of it back
    clock.note(11.0, 511.0, 11.002)
    clock.note(12.0, 512.1, 12.1)
    told = clock.at(12.0)
    assert told is not None
    assert told.offset_s == pytest.approx(499.999) and told.error_s == pytest.approx(0.001 + DRIFT * (12.0 - 11.002))


def test_what_is_long_ago_is_no_longer_trusted() -> None:
    clock = ClockFilter()
    clock.note(0.0, 0.001, 0.002)
    for second in range(1, EXCHANGES + 1):
        clock.note(second, second + 5.05, second + 0.1)
    told = clock.at(EXCHANGES)
    assert told is not None and told.offset_s == pytest.approx(5.0)


@given(st.floats(-1e6, 1e6), st.lists(st.tuples(st.floats(0, 0.2), st.floats(0, 0.2)), min_size=1, max_size=20))
def test_the_error_bounds_the_truth(offset_s: float, ways: list[tuple[float, float]]) -> None:
    clock, now = ClockFilter(), 100.0
    for there_s, back_s in ways:
        clock.note(now, now + there_s + offset_s, now + there_s + back_s)
        now += 1.0
    told = clock.at(now)
    assert told is not None and abs(told.offset_s - offset_s) <= told.error_s + 1e-6
