from __future__ import annotations

from vramancer_cli.runtime.rate import TokenRate


def test_a_steady_stream_has_its_rate() -> None:
    rate = TokenRate(window_s=5.0)
    for step in range(100):
        rate.add(2, step * 0.1)
    assert abs(rate.per_second(9.9) - 20.0) < 1e-6


def test_silence_forgets() -> None:
    rate = TokenRate(window_s=5.0)
    rate.add(1, 0.0)
    rate.add(1, 1.0)
    assert rate.per_second(1.0) == 1.0
    assert rate.per_second(10.0) == 0.0


def test_one_token_is_no_rate() -> None:
    rate = TokenRate()
    rate.add(1, 0.0)
    assert rate.per_second(0.0) == 0.0
