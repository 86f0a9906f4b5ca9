from __future__ import annotations

from vramancer_cli.runtime.bulk_pace import BUSY_BYTES_PER_S, BUSY_SHARE, MOST_PAUSE_S, BulkPace


class Clock:
    """Time passes only by sleeping and working."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def work(pace: BulkPace, clock: Clock, turns: int, each_s: float, size_bytes: int = 1) -> float:
    """Seconds that so many turns take."""
    began = clock.now
    for _ in range(turns):
        with pace.turn(size_bytes):
            clock.pass_by(each_s)
    return clock.now - began


def test_without_sequences_nothing_waits() -> None:
    clock = Clock()
    pace = BulkPace(lambda: False, clock, clock.pass_by)
    assert abs(work(pace, clock, 50, 0.01) - 0.5) < 1e-6


def test_while_sequences_run_handing_out_takes_its_share_of_the_time() -> None:
    clock = Clock()
    pace = BulkPace(lambda: True, clock, clock.pass_by)
    work(pace, clock, 30, 0.01)  # it learns what a turn costs
    share = 100 * 0.01 / work(pace, clock, 100, 0.01)
    assert 0.8 * BUSY_SHARE < share < 1.1 * BUSY_SHARE


def test_what_costs_hardly_any_time_has_a_most_of_bytes() -> None:
    clock = Clock()
    pace = BulkPace(lambda: True, clock, clock.pass_by)
    work(pace, clock, 50, 1e-6)
    bytes_per_s = 40 * (1 << 20) / work(pace, clock, 40, 1e-6, 1 << 20)
    assert 0.9 * BUSY_BYTES_PER_S < bytes_per_s < 1.1 * BUSY_BYTES_PER_S


def test_a_pause_is_never_long() -> None:
    clock = Clock()
    pace = BulkPace(lambda: True, clock, clock.pass_by)
    assert work(pace, clock, 20, 1.0) <= 20 * max(MOST_PAUSE_S, 1.0) + 1


def test_who_waits_goes_on_as_soon_as_nothing_runs() -> None:
    clock = Clock()
    busy = True

    def sleep(seconds: float) -> None:
        nonlocal busy
        clock.pass_by(seconds)
        busy = False

    pace = BulkPace(lambda: busy, clock, sleep)
    work(pace, clock, 1, 0.5)
    assert work(pace, clock, 1, 0.0) < 0.1
