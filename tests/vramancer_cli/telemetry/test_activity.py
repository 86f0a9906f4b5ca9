"""Activity: shares of the window, by hand."""

from __future__ import annotations

import json

import pytest

from tests.helpers.traces import two_stages
from vramancer_cli.telemetry.activity import activity
from vramancer_cli.telemetry.cluster_trace import ClusterTrace


def test_what_two_stages_did() -> None:
    told = activity(two_stages(20))
    window_s = 19 / 100 + 0.0205
    assert (told.window_s, told.steps, told.step_s) == pytest.approx((window_s, 20, window_s / 20))
    assert told.scheduling_s == pytest.approx(0.001)
    assert told.scheduling == pytest.approx(20 * 0.001 / window_s)
    first, second = told.stages
    assert (first.node, first.layers, first.steps, second.node) == ("attic", (0, 4), 20, "cellar")
    assert first.busy == pytest.approx(20 * (0.0005 + 0.008 + 0.0005) / window_s)
    assert first.ends == pytest.approx(20 * 0.001 / window_s)
    assert second.busy == pytest.approx(20 * 0.008 / window_s)
    assert second.waiting == pytest.approx(1 - second.busy)
    assert first.sending == second.sending == pytest.approx(20 * 0.0005 / window_s)
    assert (second.mean_step_s, second.mean_rows, second.mean_tokens) == pytest.approx((0.008, 2, 2.1))
    assert second.prompt_share == pytest.approx(4 / 42)


def test_an_empty_trace_is_no_division_by_zero() -> None:
    told = activity(ClusterTrace(5.0, two_stages().stages, ()))
    assert (told.steps, told.scheduling, [stage.busy for stage in told.stages]) == (0, 0.0, [0.0, 0.0])


def test_it_is_told_as_json() -> None:
    told = json.loads(json.dumps(activity(two_stages()).to_json()))
    assert told["stages"][1]["waiting"] == pytest.approx(1 - told["stages"][1]["busy"])
