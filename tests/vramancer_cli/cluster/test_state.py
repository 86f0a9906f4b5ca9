"""One event after the other: what changes, and what changes nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.cluster_bench import ClusterBench
from tests.helpers.cluster_invariants import validate
from tests.helpers.planning_values import HEAD, MIB, model_facts, node_facts, node_id, node_load, settings
from transport.types import Versions
from vramancer_cli.cluster import events
from vramancer_cli.cluster.records import BACK_OFF_S, FAILURE_WINDOW_S, FAILURES, StageRecord
from vramancer_cli.cluster.state import State, apply, candidates, considering, mismatch
from vramancer_cli.planning.plan import held_bytes

FACTS = model_facts(layers=(MIB,) * 8, ends=MIB)
ONE, TWO = node_id(1), node_id(2)


def planned_bench() -> ClusterBench:
    """Three nodes, all in the plan of epoch 1, loading."""
    bench = ClusterBench()
    bench.choose(FACTS, settings())
    for number in range(3):
        bench.join_number(number, 20 * MIB)
    bench.wait(1.0)
    bench.reconcile()
    assert bench.state.active_plan is not None
    assert len(bench.state.active_plan.stages) == 3
    return bench


def serving_bench() -> ClusterBench:
    bench = planned_bench()
    bench.run_until_quiet()
    assert bench.state.serving_epoch == 1
    return bench


def broken_by(bench: ClusterBench) -> tuple[str, str | None]:
    assert bench.state.broken is not None
    return bench.state.broken.reason, bench.state.broken.node


def test_a_node_that_joins_again_replaces_its_record_and_breaks_its_plan() -> None:
    bench = serving_bench()
    bench.note(events.NodeJoined(node_facts(1, 7 * MIB), bench.now, is_head=False))
    record = bench.state.nodes[ONE]
    assert (record.limits, record.stage, record.joined_at) == ((7 * MIB,), None, bench.now)
    assert broken_by(bench) == ("'node-1' started again", ONE)


def test_a_second_head_is_a_worker() -> None:
    bench = planned_bench()
    bench.note(events.NodeJoined(node_facts(5, MIB), bench.now, is_head=True))
    assert bench.state.head is not None
    assert bench.state.head.facts.node_id == HEAD
    assert not bench.state.nodes[node_id(5)].is_head


def test_figures_come_with_being_heard_and_stay_while_not_measured() -> None:
    bench = planned_bench()
    bench.note(events.NodeHeard(ONE, 200.0, node_load(1, 2, 3), 0.5))
    bench.note(events.NodeHeard(ONE, 201.0, node_load(4, 5, 6), None))
    bench.note(events.NodeHeard(ONE, 150.0, node_load(7, 8, 9), None))
    record = bench.state.nodes[ONE]
    assert (record.load, record.round_trip_s, record.last_heard) == (node_load(7, 8, 9), 0.5, 201.0)


def test_a_lost_node_of_the_plan_breaks_it_and_the_first_cause_is_told() -> None:
    bench = serving_bench()
    bench.note(events.NodeLost(ONE, "silent", 300.0))
    bench.note(events.NodeLost(TWO, "silent too", 301.0))
    assert broken_by(bench) == ("'node-1' was lost: silent", ONE)
    assert not bench.state.nodes[ONE].alive
    assert bench.state.nodes[ONE].stage is None


def test_the_head_and_strangers_are_never_lost_and_the_lost_are_not_heard() -> None:
    bench = serving_bench()
    for node in (HEAD, "unknown"):
        assert apply(bench.state, events.NodeLost(node, "silent", 1.0)) is bench.state
    bench.note(events.NodeLost(ONE, "silent", 300.0))
    for late in (
        events.NodeHeard(ONE, 301.0, node_load(0, 0, 0), 0.1),
        events.NodeLost(ONE, "again", 302.0),
        events.StageBecameReady(ONE, 1, True),
        events.Assigned(ONE, 1, 1.0),
        events.Released(ONE, 1),
    ):
        assert apply(bench.state, late) is bench.state


def test_a_node_that_keeps_failing_rests_and_is_tried_again() -> None:
    bench = planned_bench()
    for times in range(1, FAILURES + 1):
        assert ONE in candidates(bench.state)
        bench.note(events.NodeLost(ONE, "a crash", 100.0 * times, failed=True))
        bench.join_number(1, 30 * MIB)
    rested = events.NodeRested(ONE)
    trouble = bench.state.nodes[ONE].trouble
    assert (trouble.reason, trouble.resting_until) == ("a crash", 100.0 * FAILURES + BACK_OFF_S)
    assert ONE not in candidates(bench.state)
    assert apply(bench.state, events.NodeRested(TWO)) is bench.state
    bench.note(rested)
    assert ONE in candidates(bench.state)
    bench.note(events.NodeLost(ONE, "the next", 100.0 * FAILURES + BACK_OFF_S + 1, failed=True))
    bench.join_number(1, 30 * MIB)
    assert ONE not in candidates(bench.state), "one more within the window is enough"


def test_failures_long_ago_do_not_count() -> None:
    bench = planned_bench()
    for at in (0.0, 1.0, FAILURE_WINDOW_S + 1.5):
        bench.note(events.NodeLost(ONE, "a crash", at, failed=True))
        bench.join_number(1, 30 * MIB)
    assert ONE in candidates(bench.state)


def test_a_node_lost_while_loading_has_failed_and_one_lost_while_ready_has_not() -> None:
    loading, ready = planned_bench(), serving_bench()
    for bench, times in ((loading, 1), (ready, 0)):
        bench.note(events.NodeLost(ONE, "gone", 300.0))
        assert len(bench.state.nodes[ONE].trouble.times) == times


def test_stage_events_of_another_epoch_change_nothing() -> None:
    bench = planned_bench()
    for epoch in (0, 2):
        for event in (
            events.StageLoading(ONE, epoch, 1, 2, 1.0),
            events.StageBecameReady(ONE, epoch, True),
            events.StageRefused(ONE, epoch, 2, 1, "no"),
            events.ServingStopped(epoch, "no"),
            events.ServingBroke(epoch, "no"),
        ):
            assert apply(bench.state, event) is bench.state
    assert apply(bench.state, events.Assigned(ONE, 2, 1.0)) is bench.state
    assert apply(bench.state, events.Released(ONE, 0)) is bench.state


def test_fetching_moves_on_only_with_more_bytes() -> None:
    bench = planned_bench()
    bench.note(events.StageFetching(ONE, 1, 5, 10, 1.0))
    bench.note(events.StageFetching(ONE, 1, 5, 10, 2.0))
    assert bench.state.nodes[ONE].stage == StageRecord(
        1, "loading", moved_at=1.0, assigned_at=101.0, fetched_bytes=5, fetch_bytes=10
    )
    bench.note(events.StageFetching(ONE, 1, 99, 10, 3.0))  # nonsense from outside stays within bounds
    assert bench.state.nodes[ONE].stage == StageRecord(
        1, "loading", moved_at=3.0, assigned_at=101.0, fetched_bytes=10, fetch_bytes=10
    )
    assert apply(bench.state, events.StageFetching(ONE, 2, 1, 10, 4.0)) is bench.state


def test_loading_and_ready() -> None:
    bench = planned_bench()
    bench.note(events.StageLoading(ONE, 1, 1, 4, 1.0))
    assert bench.state.nodes[ONE].stage == StageRecord(1, "loading", 0.25, moved_at=1.0, assigned_at=101.0)
    bench.note(events.StageLoading(ONE, 1, 9, 0, 2.0))  # nonsense from outside stays a fraction
    assert bench.state.nodes[ONE].stage == StageRecord(1, "loading", 1.0, moved_at=2.0, assigned_at=101.0)
    bench.note(events.StageLoading(ONE, 1, 1, 4, 3.0))
    stage = bench.state.nodes[ONE].stage
    assert stage is not None and stage.moved_at == 2.0, "it got no further"
    assert not bench.state.stage_ready(ONE)
    bench.note(events.StageBecameReady(ONE, 1, direct=False))
    assert bench.state.nodes[ONE].stage == StageRecord(1, "ready", 1.0, moved_at=2.0, assigned_at=101.0)
    assert bench.state.stage_ready(ONE)
    assert apply(bench.state, events.StageLoading(ONE, 1, 1, 4, 1.0)) is bench.state


@pytest.mark.parametrize(
    ("needed_more", "present", "limit"),
    [
        (0, 5 * MIB, 5 * MIB),
        (0, 0, 0),
        (0, -3, 0),
        (30 * MIB, 20 * MIB, None),  # counts more than the planner: corrected below
        (0, 20 * MIB, 0),  # by its own figures it fits, so it refuses for another reason
        (0, 99 * MIB, 0),
    ],
)
def test_a_refusal_lowers_the_limit_strictly(needed_more: int, present: int, limit: int | None) -> None:
    bench = planned_bench()
    assert bench.state.active_plan is not None
    planned = held_bytes(bench.state.active_plan)[ONE, 0]
    (before,) = bench.state.nodes[ONE].limits
    if needed_more:
        needed_more, limit = MIB, present - MIB
    bench.note(events.StageRefused(ONE, 1, planned + needed_more, present, "not enough"))
    assert bench.state.nodes[ONE].limits == (limit,)
    assert limit is not None
    assert limit < before
    assert broken_by(bench) == ("'node-1' refused its layers: not enough", ONE)


def test_the_head_may_refuse_for_its_ends_too() -> None:
    bench = planned_bench()
    bench.note(events.StageRefused(HEAD, 1, 19 * MIB, 18 * MIB, "not enough"))
    assert bench.state.nodes[HEAD].limits == (18 * MIB,)


def test_a_device_that_refuses_lowers_no_other_devices_limit() -> None:
    bench = ClusterBench()
    bench.choose(FACTS, settings())
    bench.join(node_facts(0, 15 * MIB))
    bench.join(node_facts(1, 15 * MIB, 15 * MIB))
    bench.wait(1.0)
    bench.reconcile()
    assert bench.state.active_plan is not None
    assert [(stage.node, stage.position) for stage in bench.state.active_plan.stages] == [(HEAD, 0), (ONE, 0), (ONE, 1)]
    bench.note(events.StageRefused(ONE, 1, 14 * MIB, 9 * MIB, "not enough", position=1))
    assert bench.state.nodes[ONE].limits == (15 * MIB, 9 * MIB)
    bench.note(events.StageRefused(ONE, 1, 14 * MIB, 9 * MIB, "of no device", position=2))
    assert bench.state.nodes[ONE].limits == (15 * MIB, 9 * MIB)


def test_a_stopped_epoch_is_spent() -> None:
    bench = serving_bench()
    bench.note(events.ServingStopped(1, "an error on the head"))
    assert bench.state.serving_epoch is None
    assert broken_by(bench) == ("an error on the head", None)


def test_serving_that_broke_breaks_the_plan() -> None:
    bench = serving_bench()
    bench.note(events.ServingBroke(1, "out of memory"))
    assert broken_by(bench) == ("out of memory", None)
    assert bench.state.serving_epoch == 1  # until it has been stopped


def test_a_plan_that_moves_nothing_leaves_the_old_one_serving() -> None:
    bench = serving_bench()
    plan = bench.state.active_plan
    assert plan is not None
    again = type(plan)(**{f: getattr(plan, f) for f in plan.__struct_fields__} | {"epoch": 4, "reasons": {HEAD: "new"}})
    bench.note(events.Planned(again, bench.now))
    assert bench.state.active_plan is not None
    assert (bench.state.active_plan.epoch, bench.state.active_plan.reasons) == (1, {HEAD: "new"})
    assert bench.state.epoch == 4
    assert apply(bench.state, events.Planned(again, bench.now)) is bench.state  # late


def test_a_plan_with_a_node_that_is_gone_is_broken_at_once() -> None:
    bench = serving_bench()
    plan = bench.state.active_plan
    assert plan is not None
    bench.note(events.NodeLost(TWO, "silent", 300.0))
    late = type(plan)(**{f: getattr(plan, f) for f in plan.__struct_fields__} | {"epoch": 2})
    bench.note(events.Planned(late, bench.now))
    assert broken_by(bench) == ("a node was lost while planning", TWO)


def test_a_failed_plan_keeps_a_good_one_and_ends_a_broken_one() -> None:
    bench = serving_bench()
    bench.note(events.PlanFailed("does not fit", 5, bench.now))
    assert (bench.state.failure, bench.state.epoch) == (None, 2)
    assert bench.state.active_plan is not None
    bench.note(events.NodeLost(ONE, "silent", 300.0))
    bench.note(events.PlanFailed("does not fit", 5, bench.now))
    assert bench.state.active_plan is None
    assert bench.state.failure is not None
    assert bench.state.failure.missing_bytes == 5


def test_another_model_breaks_the_plan_and_the_same_again_does_not() -> None:
    bench = serving_bench()
    assert apply(bench.state, events.ModelChosen(FACTS, settings())) is bench.state
    bench.note(events.ModelChosen(model_facts(name="other"), settings()))
    assert broken_by(bench) == ("another model was chosen", None)


def test_nodes_that_compute_differently_are_no_candidates() -> None:
    bench = planned_bench()
    bench.note(
        events.NodeJoined(node_facts(7, MIB, versions=Versions("0.1.0", "2.12.0", "5.23.0")), bench.now, is_head=False)
    )
    bench.note(
        events.NodeJoined(node_facts(8, MIB, versions=Versions("9.9.9", "2.13.0", "5.23.0")), bench.now, is_head=False)
    )
    assert candidates(bench.state).keys() == {HEAD, ONE, TWO, node_id(8)}
    reason = mismatch(bench.state, bench.state.nodes[node_id(7)])
    assert reason is not None
    assert "torch 2.12.0" in reason
    assert "the head with 2.13.0" in reason
    assert considering(State()) == frozenset()


def test_busy_is_never_negative() -> None:
    state = apply(State(), events.BusyChanged(-1, 3))
    assert (state.running, state.waiting) == (0, 3)


def test_validate_finds_contradictions() -> None:
    state = serving_bench().state
    node = state.nodes[ONE]
    for broken in (
        replace(state, nodes={**state.nodes, ONE: replace(node, status="lost")}),
        replace(state, nodes={**state.nodes, ONE: replace(node, is_head=True)}),
        replace(state, nodes={**state.nodes, ONE: replace(node, limits=(node.facts.limit_bytes + 1,))}),
        replace(state, nodes={HEAD: state.nodes[HEAD]}),
        replace(state, epoch=0),
        replace(state, serving_epoch=9),
    ):
        with pytest.raises(AssertionError):
            validate(broken)
