"""A cluster's trace out of what its nodes told: one clock, one beginning. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from transport.types import NodeId
from vramancer_cli.cluster.state import State
from vramancer_cli.runtime.span_inbox import ToldSpans
from vramancer_cli.telemetry.cluster_trace import ClusterTrace, NodeTrace, StagePlace, TracedSpan


def cluster_trace(told: Mapping[NodeId, ToldSpans], state: State, began_s: float, seconds: float) -> ClusterTrace:
    """Of the `seconds` from `began_s` on, by the head's clock. `told` begins with the head.

    Nodes of the plan that told nothing are in it without spans.
    """
    plan = state.active_plan
    places = () if plan is None else plan.stages
    stages = tuple(StagePlace(s.node, s.position, (s.layers.start, s.layers.end)) for s in places)
    asked = dict.fromkeys((*told, *(stage.node for stage in places)))
    return ClusterTrace(seconds, stages, tuple(_node(node, told.get(node), state, began_s) for node in asked))


def _node(node: NodeId, told: ToldSpans | None, state: State, began_s: float) -> NodeTrace:
    name = state.nodes[node].facts.name if node in state.nodes else node[:8]
    if told is None or told.clock is None:
        return NodeTrace(node, name, None)
    late_s = told.clock.offset_s + began_s
    spans = (
        TracedSpan(s.kind, s.number, round(s.began_s - late_s, 6), round(s.ended_s - late_s, 6),
                   s.device, s.stage, s.rows, s.tokens, s.prompt_tokens)
        for s in told.spans
    )  # fmt: skip
    return NodeTrace(node, name, round(told.clock.error_s, 6), tuple(spans))
