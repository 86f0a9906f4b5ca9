"""Silence, loads that stand still, and the end of a rest, by the clock that is given."""

from __future__ import annotations

from tests.helpers.cluster_bench import ClusterBench
from tests.helpers.planning_values import HEAD, MIB, model_facts, node_id, node_load, settings
from vramancer_cli.cluster import events
from vramancer_cli.cluster.membership import FETCHING_S, LOADING_S, released, rested, silent, stuck
from vramancer_cli.cluster.records import BACK_OFF_S, FAILURES, QUARANTINE_S


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
    bench.note(events.NodeHeard(node_id(1), 14.0, node_load(0, 0, 0), 0.01))
    lost = silent(bench.state, 15.0, 1.0)
    assert lost == (events.NodeLost(node_id(2), "silent for 5.0 s", 15.0, silent=True),)
    bench.note(lost[0])
    assert silent(bench.state, 15.0, 1.0) == ()


def test_a_node_that_joins_again_counts_from_then() -> None:
    bench = bench_of_three()
    bench.wait(100.0)
    bench.join_number(1, MIB)
    assert [lost.node for lost in silent(bench.state, bench.now + 1.0, 1.0)] == [node_id(2)]


def loading_bench() -> ClusterBench:
    """Three nodes that load; the plan was made at 101."""
    bench = ClusterBench()
    bench.choose(model_facts(layers=(MIB,) * 8, ends=MIB), settings())
    for number in range(3):
        bench.join_number(number, 20 * MIB)
    bench.wait(1.0)
    bench.reconcile()
    return bench


def test_a_load_that_gets_no_further_is_lost_but_a_checkpoint_may_take_long_to_come() -> None:
    bench = loading_bench()
    one, two = node_id(1), node_id(2)
    bench.answer(two)
    assert stuck(bench.state, 101.0 + FETCHING_S) == ()
    assert [lost.node for lost in stuck(bench.state, 101.1 + FETCHING_S)] == [one], "not the head, not who is ready"
    bench.note(events.StageLoading(one, 1, 1, 4, 500.0))
    bench.note(events.StageLoading(one, 1, 1, 4, 900.0))  # no further
    assert stuck(bench.state, 500.0 + LOADING_S) == ()
    [lost] = stuck(bench.state, 500.1 + LOADING_S)
    assert (lost.node, lost.reason) == (one, "its load got no further for 10 min")
    assert bench.state.nodes[HEAD].stage is not None


def test_a_rest_ends_when_its_time_is_over() -> None:
    bench = loading_bench()
    for _ in range(FAILURES):
        bench.note(events.NodeLost(node_id(1), "a crash", 200.0, failed=True))
        bench.join_number(1, 20 * MIB)
    assert rested(bench.state, 199.9 + BACK_OFF_S) == ()
    assert rested(bench.state, 200.0 + BACK_OFF_S) == (events.NodeRested(node_id(1)),)
    bench.note(events.NodeRested(node_id(1)))
    assert rested(bench.state, 201.0 + BACK_OFF_S) == ()


def test_a_quarantine_is_over_when_its_time_is_and_not_by_joining_again() -> None:
    bench = loading_bench()
    bench.note(events.NodeQuarantined(node_id(1), "no magic", 200.0))
    bench.lose(1, "no magic")
    bench.join_number(1, 20 * MIB)
    assert bench.state.nodes[node_id(1)].quarantine is not None
    assert released(bench.state, 199.9 + QUARANTINE_S) == ()
    assert released(bench.state, 200.0 + QUARANTINE_S) == (events.QuarantineEnded(node_id(1)),)
    bench.note(events.QuarantineEnded(node_id(1)))
    assert released(bench.state, 300.0 + QUARANTINE_S) == ()
