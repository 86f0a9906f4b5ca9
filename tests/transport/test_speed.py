"""A link's speed, from payloads and the times that they took."""

from __future__ import annotations

import pytest

from transport.speed import LEAST_BYTES, SpeedGauge


def came(gauge: SpeedGauge, size_bytes: int, seconds: float) -> int | None:
    gauge.begin(size_bytes, 100.0)
    gauge.end(100.0 + seconds)
    return gauge.news()


def test_speed_is_bytes_over_time_and_told_once() -> None:
    gauge = SpeedGauge()
    assert gauge.news() is None
    assert came(gauge, 10**6, 0.08) == 12_500_000
    assert gauge.news() is None
    assert came(gauge, 10**6, 0.085) is None, "much the same"


def test_a_small_payload_tells_nothing() -> None:
    gauge = SpeedGauge()
    assert came(gauge, LEAST_BYTES - 1, 1.0) is None
    gauge.end(200.0)
    assert gauge.news() is None


def test_no_time_at_all_is_no_speed() -> None:
    assert came(SpeedGauge(), 10**6, 0.0) is None


def test_a_change_is_followed_and_one_lucky_payload_is_not() -> None:
    gauge = SpeedGauge()
    for _ in range(5):
        came(gauge, 10**6, 0.1)
    assert came(gauge, 10**6, 0.0001) == pytest.approx(13_700_000, rel=0.01), "it had waited in the system"
    for _ in range(10):
        came(gauge, 10**6, 0.01)
    speeds = [came(gauge, 10**6, 0.01) for _ in range(10)]
    assert gauge._told == pytest.approx(10**8, rel=0.25), speeds
