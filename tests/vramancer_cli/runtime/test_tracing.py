"""One clock for all nodes, one beginning, and nobody of the plan left out."""

from __future__ import annotations

import pytest

from tests.helpers.pipeline_bench import HEAD, SMALL, make_plan
from tests.helpers.simulated_cluster import node_id
from transport.clocks import Offset
from transport.messages import Span
from vramancer_cli.cluster.state import State
from vramancer_cli.runtime.span_inbox import ToldSpans
from vramancer_cli.runtime.tracing import cluster_trace

PLAN = make_plan((SMALL,) * 4)


def test_a_workers_spans_are_moved_to_the_heads_clock() -> None:
    told = {
        HEAD: ToldSpans((Span("embed", 4, 101.0, 101.5),), Offset(0.0, 0.0)),
        node_id(1): ToldSpans((Span("compute", 4, 601.75, 602.0, 1, 2, 3, 9, 8),), Offset(500.0, 0.002)),
        node_id(2): ToldSpans((Span("compute", 4, 1.0, 2.0),), None),
    }
    trace = cluster_trace(told, State(active_plan=PLAN), began_s=100.0, seconds=5.0)
    assert next(node.id for node in trace.nodes) == HEAD
    assert trace.node(HEAD).spans[0][:4] == ("embed", 4, 1.0, 1.5)
    assert trace.node(node_id(1)).spans == (("compute", 4, 1.75, 2.0, 1, 2, 3, 9, 8),)
    assert trace.node(node_id(1)).clock_error_s == 0.002
    assert (trace.node(node_id(2)).clock_error_s, trace.node(node_id(2)).spans) == (None, ())
    assert [stage.node for stage in trace.stages] == [stage.node for stage in PLAN.stages]
    assert {node.id for node in trace.nodes} == {stage.node for stage in PLAN.stages} | told.keys()
    assert trace.seconds == pytest.approx(5.0)
