"""What a device is timed at: by kind of step, by the median, and of one model only."""

from __future__ import annotations

import pytest
import torch

from vramancer_cli.engine import pace
from vramancer_cli.engine.pace import FEW_TOKENS, MANY_TOKENS, REMEMBERED, Pace, probe

CPU = torch.device("cpu")


def stepping(monkeypatch: pytest.MonkeyPatch, timed: Pace, layers: int, tokens: int, *took_s: float) -> None:
    for seconds in took_s:
        times = iter((0.0, seconds))
        monkeypatch.setattr(pace.time, "perf_counter", lambda times=times: next(times))
        with timed.timing(layers, tokens):
            pass


def test_small_steps_tell_of_layers_and_large_ones_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Pace(CPU)
    assert (timed.layer_s, timed.layer_token_s) == (0.0, 0.0)
    stepping(monkeypatch, timed, 4, 1, 0.4, 0.4, 40.0)
    stepping(monkeypatch, timed, 4, MANY_TOKENS, 0.64 * MANY_TOKENS)
    stepping(monkeypatch, timed, 4, FEW_TOKENS + 1, 99.0)
    assert timed.layer_s == pytest.approx(0.1), "one that was held up does not count"
    assert timed.layer_token_s == pytest.approx(0.16)
    stepping(monkeypatch, timed, 4, FEW_TOKENS, *[0.8] * REMEMBERED)
    assert timed.layer_s == pytest.approx(0.2), "the latest count"


def test_another_model_is_timed_anew_and_a_step_that_fails_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Pace(CPU)
    timed.begin("a")
    stepping(monkeypatch, timed, 1, 1, 0.1)
    timed.begin("a")
    assert timed.layer_s == pytest.approx(0.1)
    timed.begin("b")
    assert timed.layer_s == 0.0
    monkeypatch.undo()
    with pytest.raises(ValueError, match="broken"), timed.timing(1, 1):
        raise ValueError("broken")
    assert timed.layer_s == 0.0


def test_a_device_is_timed_within_what_it_may_hold() -> None:
    speed = probe(CPU, 16 << 20)
    assert speed.layer_s > 0 and speed.bytes_per_s > 0
