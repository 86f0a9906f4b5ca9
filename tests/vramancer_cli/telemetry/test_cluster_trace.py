from __future__ import annotations

import json

import pytest

from tests.helpers.traces import two_stages
from vramancer_cli.telemetry.cluster_trace import ClusterTrace, TracedSpan


def test_it_survives_json() -> None:
    trace = two_stages()
    assert ClusterTrace.from_json(json.loads(json.dumps(trace.to_json()))) == trace


@pytest.mark.parametrize("spoil", [{}, {"seconds": 1, "stages": [{}], "nodes": []}, {"seconds": 1, "stages": 3}])
def test_what_is_no_trace_is_refused(spoil: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        ClusterTrace.from_json(spoil)


def test_the_window_is_from_the_first_span_to_the_last() -> None:
    assert two_stages(3).window == (0.0, pytest.approx(0.0405))
    assert ClusterTrace(5.0, (), ()).window == (0.0, 0.0)


@pytest.mark.parametrize(
    ("tokens", "prompt", "phase"), [(4, 4, "prefill"), (4, 3, "mixed"), (4, 0, "decode"), (0, 0, "")]
)
def test_what_a_step_was_for(tokens: int, prompt: int, phase: str) -> None:
    assert TracedSpan("compute", 1, 0.0, 1.0, tokens=tokens, prompt_tokens=prompt).phase == phase
