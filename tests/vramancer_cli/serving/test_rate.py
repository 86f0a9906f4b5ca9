from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramancer_cli.serving.rate import Buckets, home_of


def test_so_many_at_once_and_then_evenly() -> None:
    buckets = Buckets(60)
    assert [buckets.take("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert buckets.take("a", 0.0) == pytest.approx(1.0)
    assert buckets.take("a", 0.5) == pytest.approx(0.5)
    assert buckets.take("a", 1.0) == 0.0
    assert buckets.take("a", 1.0) == pytest.approx(1.0)
    assert buckets.take("b", 1.0) == 0.0


def test_looking_takes_nothing() -> None:
    buckets = Buckets(1)
    for _ in range(5):
        assert buckets.wait_s("a", 0.0) == 0.0
    assert len(buckets) == 0
    buckets.take("a", 0.0)
    assert buckets.wait_s("a", 0.0) == pytest.approx(60.0)


def test_a_bucket_is_never_fuller_than_full_and_a_clock_that_goes_back_fills_none() -> None:
    buckets = Buckets(2)
    buckets.take("a", 0.0)
    assert [buckets.take("a", 10_000.0) == 0.0 for _ in range(3)] == [True, True, False]
    assert buckets.take("a", 0.0) > 0


def test_the_newest_are_remembered_and_no_more() -> None:
    buckets = Buckets(1, most=3)
    for who in "abc":
        buckets.take(who, 0.0)
    buckets.take("a", 0.0)  # refused, and yet the newest now
    buckets.take("d", 0.0)
    assert len(buckets) == 3
    assert buckets.take("a", 0.0) > 0 and buckets.wait_s("b", 0.0) == 0.0


@given(
    per_minute=st.integers(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 20)), max_size=60),
)
def test_no_more_pass_than_a_burst_and_the_refill(per_minute: int, steps: list[tuple[float, int]]) -> None:
    buckets, now, passed = Buckets(per_minute), 0.0, 0
    for pause_s, asked in steps:
        now += pause_s
        passed += sum(buckets.take("a", now) == 0.0 for _ in range(asked))
    assert passed <= per_minute + now * per_minute / 60 + 1e-6


@given(per_minute=st.integers(1, 1000), asked=st.integers(0, 1500))
def test_who_waits_as_long_as_told_passes(per_minute: int, asked: int) -> None:
    buckets = Buckets(per_minute)
    for _ in range(asked):
        buckets.take("a", 0.0)
    wait_s = buckets.wait_s("a", 0.0)
    assert buckets.take("a", wait_s + 1e-9) == 0.0


@pytest.mark.parametrize(
    ("address", "home"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::1", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
    ],
)
def test_a_home_is_one_address(address: str, home: str) -> None:
    assert home_of(address) == home
