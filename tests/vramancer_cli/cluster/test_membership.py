"""Silence, by the clock that is given."""

from __future__ import annotations

from tests.helpers.cluster_bench import ClusterBench
from tests.helpers.planning_values import MIB, node_id
from transport.messages import NodeLoad
from vramancer_cli.cluster import events
from vramancer_cli.cluster.membership import silent


def bench_of_three() -> ClusterBench:
    bench = ClusterBench(now=10.0)
    for number in range(3):
        bench.join_number(number, MIB)
    return bench


def test_nobody_is_silent_until_three_intervals_have_passed() -> None:
    state = bench_of_three().state
    assert silent(state, 13.0, 1.0) == ()
    assert [lost.node for lost in silent(state, 13.1, 1.0)] == [node_id(1), node_id(2)]  # never the head
    assert [lost.node for lost in silent(state, 11.5, 1.0, missed=1)] == [node_id(1), node_id(2)]


def test_who_was_heard_stays_and_who_is_lost_is_not_lost_again() -> None:
    bench = bench_of_three()
    bench.note(events.NodeHeard(node_id(1), 14.0, NodeLoad(0, 0, 0), 0.01))
    lost = silent(bench.state, 15.0, 1.0)
    assert lost == (events.NodeLost(node_id(2), "silent for 5.0 s", 15.0),)
    bench.note(lost[0])
    assert silent(bench.state, 15.0, 1.0) == ()


def test_a_node_that_joins_again_counts_from_then() -> None:
    bench = bench_of_three()
    bench.wait(100.0)
    bench.join_number(1, MIB)
    assert [lost.node for lost in silent(bench.state, bench.now + 1.0, 1.0)] == [node_id(2)]
