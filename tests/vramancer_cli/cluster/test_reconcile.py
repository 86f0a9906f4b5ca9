"""What is done about a state: small stories, each with real plans."""

from __future__ import annotations

import re

from tests.helpers.cluster_bench import ClusterBench
from tests.helpers.planning_values import HEAD, MIB, model_facts, node_facts, node_id, settings
from transport.types import Versions
from vramancer_cli.cluster import events
from vramancer_cli.cluster.reconcile import (
    BUSY_SETTLE_S,
    RECOVERY_S,
    RETURN_S,
    Action,
    Assign,
    EndRequests,
    MakePlan,
    Reconciliation,
    Release,
    StartServing,
    StopServing,
    next_actions,
)
from vramancer_cli.cluster.records import Interruption
from vramancer_cli.cluster.state import State
from vramancer_cli.planning.worth import ROOM_GAIN

FACTS = model_facts(layers=(MIB,) * 8, ends=MIB)  # 36 MiB in float32
ONE, TWO, THREE = node_id(1), node_id(2), node_id(3)


def bench_of(*limits_mib: int) -> ClusterBench:
    bench = ClusterBench()
    bench.choose(FACTS, settings())
    for number, limit_mib in enumerate(limits_mib):
        bench.join_number(number, limit_mib * MIB)
    return bench


def serving(*limits_mib: int) -> ClusterBench:
    bench = bench_of(*limits_mib)
    bench.run_until_quiet()
    assert bench.serving is not None
    return bench


def kinds(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def test_nothing_to_do_without_model_or_head() -> None:
    assert next_actions(State(), 0.0) == Reconciliation()
    bench = ClusterBench()
    bench.choose(FACTS, settings())
    bench.join_number(1, 100 * MIB)
    bench.wait(10.0)
    assert bench.reconcile() == []


def test_machines_started_together_cause_one_plan() -> None:
    bench = ClusterBench()
    bench.choose(FACTS, settings())
    for number in range(3):
        bench.join_number(number, 20 * MIB)
        assert next_actions(bench.state, bench.now) == Reconciliation((), bench.now + 1.0)
        bench.wait(0.75)
    wake_at = next_actions(bench.state, bench.now).wake_at
    assert wake_at is not None
    bench.now = wake_at
    assert kinds(bench.reconcile()) == ["MakePlan", "Assign", "Assign", "Assign"]
    assert next_actions(bench.state, bench.now) == Reconciliation()
    bench.run_until_quiet()
    assert len(bench.made()) == 1
    assert kinds(bench.actions)[-1] == "StartServing"


def test_serving_starts_when_the_last_stage_is_ready() -> None:
    bench = bench_of(20, 20, 20)
    bench.wait(1.0)
    bench.reconcile()
    for node in (TWO, HEAD):
        bench.answer(node)
        assert bench.reconcile() == []
    bench.answer(ONE)
    assert kinds(bench.reconcile()) == ["StartServing"]


def test_a_lost_node_stops_serving_at_once_and_the_rest_goes_on() -> None:
    bench = serving(30, 30, 30)
    bench.note(events.BusyChanged(3, 1))
    bench.lose(1, "silent for 3.2 s")
    first = next_actions(bench.state, bench.now)
    assert first.actions == (StopServing(1, "'node-1' was lost: silent for 3.2 s", ONE),)
    done = bench.reconcile()
    assert kinds(done) == ["StopServing", "MakePlan", "Assign", "Assign"]
    assert bench.state.interruption == Interruption(bench.now, "'node-1' was lost: silent for 3.2 s", ONE)
    bench.run_until_quiet()
    assert bench.serving is not None
    assert {stage.node for stage in bench.serving.stages} == {HEAD, TWO}
    assert bench.state.interruption is None


def test_a_node_lost_while_loading_means_a_new_plan_without_serving_between() -> None:
    bench = bench_of(30, 30, 30)
    bench.wait(1.0)
    bench.reconcile()
    bench.answer(HEAD)
    bench.lose(2)
    assert kinds(bench.reconcile()) == ["MakePlan", "Assign", "Assign"]


def test_what_is_left_is_too_little_until_a_node_comes_back() -> None:
    bench = serving(22, 22)
    bench.lose(1)
    assert kinds(bench.reconcile()) == ["StopServing", "MakePlan"]
    assert bench.state.failure is not None
    assert bench.state.failure.missing_bytes > 0
    assert bench.workers[HEAD].held is not None, "the next plan may want it"
    assert next_actions(bench.state, bench.now).wake_at == bench.now + RETURN_S
    bench.wait(RETURN_S)
    [ended] = bench.reconcile()
    assert isinstance(ended, EndRequests)
    assert ended.node == ONE
    assert re.match(r"'node-1' was lost: unplugged; what is left cannot hold the model\. .* MiB more", ended.reason)
    bench.wait(60.0)
    assert bench.reconcile() == []  # a failed plan is not tried again for nothing
    bench.join_number(1, 22 * MIB)
    bench.run_until_quiet()
    assert bench.serving is not None
    assert [action.epoch for action in bench.made()] == [1, 2, 3]


def test_a_lost_spare_changes_nothing() -> None:
    bench = serving(60, 60, 1)
    bench.lose(2)
    bench.wait(5.0)
    assert bench.reconcile() == []


def test_a_refusal_plans_again_with_what_is_present() -> None:
    bench = ClusterBench()
    bench.choose(FACTS, settings())
    bench.join_number(0, 30 * MIB)
    bench.join_number(1, 40 * MIB, present_bytes=10 * MIB)
    bench.run_until_quiet()
    assert bench.serving is not None
    assert len(bench.made()) == 2
    assert {node.node: node.limit_bytes for node in bench.made()[1].devices} == {HEAD: 30 * MIB, ONE: 10 * MIB}


def test_a_node_that_refuses_everything_is_left_out() -> None:
    bench = ClusterBench()
    bench.choose(FACTS, settings())
    bench.join_number(0, 60 * MIB)
    bench.join_number(1, 60 * MIB, present_bytes=0)
    bench.run_until_quiet()
    assert bench.serving is not None
    assert [stage.node for stage in bench.serving.stages] == [HEAD]


def test_a_newcomer_waits_for_running_requests() -> None:
    bench = serving(30, 30)
    bench.join_number(2, 30 * MIB)
    bench.wait(60.0)
    bench.note(events.BusyChanged(1, 0))
    assert next_actions(bench.state, bench.now) == Reconciliation()
    bench.note(events.BusyChanged(0, 0))
    done = bench.reconcile()
    assert kinds(done)[:2] == ["MakePlan", "StopServing"]
    assert kinds(done)[2:] == ["Assign", "Assign", "Assign"]
    bench.run_until_quiet()
    assert bench.serving is not None
    assert len(bench.serving.stages) == 3


def test_a_newcomer_settles_first() -> None:
    bench = serving(30, 30)
    bench.join_number(2, 30 * MIB)
    assert next_actions(bench.state, bench.now) == Reconciliation((), bench.now + 1.0)


def test_a_newcomer_too_small_to_help_disturbs_nobody() -> None:
    bench = serving(30, 30)
    served = bench.serving
    bench.join_number(2, 1024)
    bench.wait(1.0)
    assert kinds(bench.reconcile()) == ["MakePlan", "Release"]
    assert bench.serving is served
    assert bench.state.active_plan is not None
    assert "no layers" in bench.state.active_plan.reasons[TWO]


def test_a_stopped_or_broken_epoch_is_replaced_by_the_next() -> None:
    for event in (events.ServingStopped(1, "an error"), events.ServingBroke(1, "an error")):
        bench = serving(30, 30)
        if isinstance(event, events.ServingStopped):
            bench.serving = None
        bench.note(event)
        bench.run_until_quiet()
        assert bench.serving is not None
        assert bench.serving.epoch == 2


def test_a_rejoined_node_is_assigned_again() -> None:
    bench = serving(30, 30)
    bench.join_number(1, 30 * MIB)
    bench.run_until_quiet()
    stop = next(action for action in bench.actions if isinstance(action, StopServing))
    assert stop == StopServing(1, "'node-1' started again", ONE)
    assert bench.serving is not None
    assert bench.serving.epoch == 2


def test_nodes_that_compute_differently_are_not_planned_with() -> None:
    bench = bench_of(30)
    bench.join(node_facts(1, 60 * MIB, versions=Versions("0.1.0", "2.12.0", "5.23.0")))
    bench.run_until_quiet()
    assert bench.serving is None
    assert [node.node for node in bench.made()[0].devices] == [HEAD]
    bench.join(node_facts(2, 30 * MIB))
    bench.run_until_quiet()
    assert bench.serving is not None
    assert {stage.node for stage in bench.serving.stages} == {HEAD, TWO}


def test_another_model_takes_the_place_of_the_old_one() -> None:
    bench = serving(30, 30)
    bench.note(events.BusyChanged(1, 0))
    bench.choose(model_facts(layers=(MIB,) * 4, ends=MIB, name="other"), settings())
    done = bench.reconcile()
    assert kinds(done)[:2] == ["StopServing", "MakePlan"]
    assert isinstance(done[0], StopServing) and done[0].kind == "error"
    bench.run_until_quiet()
    assert bench.serving is not None
    assert bench.serving.model.name == "other"


def test_assign_names_the_stage_of_its_node() -> None:
    bench = bench_of(20, 20, 20)
    bench.wait(1.0)
    assigned = [action for action in bench.reconcile() if isinstance(action, Assign)]
    assert [(a.node, a.stage) for a in assigned] == [(s.node, i) for i, s in enumerate(assigned[0].plan.stages)]


def test_a_late_start_is_stopped() -> None:
    """A node is lost while StartServing is performed: the start is told nevertheless, and undone."""
    bench = bench_of(30, 30)
    bench.wait(1.0)
    bench.reconcile()
    for node in (HEAD, ONE):
        bench.answer(node)
    start = next_actions(bench.state, bench.now).actions[0]
    assert isinstance(start, StartServing)
    bench.lose(1)
    bench.serving = start.plan
    bench.note(events.ServingStarted(start.plan.epoch))
    done = bench.reconcile()
    assert kinds(done)[0] == "StopServing"
    assert isinstance(done[1], MakePlan)


# --- requests that outlive their plan -------------------------------------------------------------------------------


def test_a_machine_that_is_back_in_time_ends_no_request() -> None:
    bench = serving(22, 22)
    bench.lose(1)
    bench.reconcile()
    bench.wait(RETURN_S - 0.5)
    bench.join_number(1, 22 * MIB)
    bench.wait(1.0)
    bench.run_until_quiet()
    assert bench.serving is not None
    assert not any(isinstance(action, EndRequests) for action in bench.actions)


def test_losses_one_after_the_other_count_from_the_first_plan_that_failed() -> None:
    bench = serving(20, 15, 15)
    bench.lose(1)
    bench.reconcile()
    failed_at = bench.now
    bench.wait(RETURN_S / 2)
    bench.lose(2)
    bench.reconcile()
    assert next_actions(bench.state, bench.now).wake_at == failed_at + RETURN_S


def test_a_load_that_never_ends_does_not_hold_requests_for_ever() -> None:
    bench = serving(30, 30, 30)
    bench.lose(1)
    bench.reconcile()
    assert next_actions(bench.state, bench.now) == Reconciliation((), bench.now + RECOVERY_S)
    bench.wait(RECOVERY_S)
    assert kinds(bench.reconcile()) == ["EndRequests"]
    bench.run_until_quiet()
    assert bench.serving is not None, "the load goes on all the same"


def test_an_error_of_the_heads_own_keeps_no_request() -> None:
    bench = serving(30, 30)
    bench.note(events.ServingBroke(1, "an error"))
    bench.reconcile()
    assert bench.state.interruption is None


# --- handing layers over --------------------------------------------------------------------------------------------


def test_a_node_hands_its_layers_over_and_is_let_go_when_others_serve_them() -> None:
    bench = serving(30, 30, 30)
    bench.note(events.BusyChanged(3, 0))
    bench.note(events.NodeDraining(ONE))
    done = bench.reconcile()
    assert kinds(done) == ["MakePlan", "StopServing", "Assign", "Assign"]
    assert isinstance(done[1], StopServing) and done[1].kind == "moved"
    bench.answer(HEAD)
    bench.answer(TWO)
    assert kinds(bench.reconcile()) == ["StartServing", "Release"]
    bench.wait(60.0)
    assert bench.reconcile() == []
    assert bench.serving is not None
    assert {stage.node for stage in bench.serving.stages} == {HEAD, TWO}


def test_a_node_that_cannot_be_spared_stays() -> None:
    bench = serving(22, 22)
    served = bench.serving
    bench.note(events.NodeDraining(ONE))
    assert kinds(bench.reconcile()) == ["MakePlan"]
    assert bench.serving is served
    assert not bench.state.nodes[ONE].draining


def test_a_drained_node_is_used_again_once_it_is_started_again() -> None:
    bench = serving(30, 30, 30)
    bench.note(events.NodeDraining(ONE))
    bench.run_until_quiet()
    bench.join_number(1, 30 * MIB)
    bench.run_until_quiet()
    assert bench.serving is not None
    assert len(bench.serving.stages) == 3


def test_what_a_rejoined_node_may_still_hold_stays_until_a_plan_was_made_with_it() -> None:
    bench = serving(60, 30)
    bench.note(events.BusyChanged(1, 0))
    bench.join_number(2, 100)
    bench.wait(5.0)
    assert bench.reconcile() == []
    bench.note(events.BusyChanged(0, 0))
    assert [action for action in bench.reconcile() if isinstance(action, Release)] == [Release(TWO, 1)]


# --- joining while requests run -------------------------------------------------------------------------------------


def test_where_requests_wait_a_newcomer_that_makes_much_room_is_used_at_once() -> None:
    bench = bench_of(22, 22)
    bench.choose(
        model_facts(layers=(MIB,) * 8, ends=MIB, kv=(1024,) * 8), settings(context_tokens=64, max_sequences=16)
    )
    bench.run_until_quiet()
    assert bench.serving is not None
    before = bench.serving.block_count
    bench.note(events.BusyChanged(2, 5))
    bench.join_number(2, 60 * MIB)
    bench.wait(BUSY_SETTLE_S - 0.1)
    assert bench.reconcile() == []
    bench.wait(0.1)
    done = bench.reconcile()
    assert kinds(done)[:2] == ["MakePlan", "StopServing"]
    assert isinstance(done[1], StopServing) and done[1].kind == "moved"
    bench.run_until_quiet()
    assert bench.serving.block_count >= ROOM_GAIN * before


def test_one_that_makes_little_room_is_used_when_nothing_runs_and_not_tried_twice() -> None:
    bench = serving(30, 30)
    served = bench.serving
    bench.note(events.BusyChanged(2, 5))
    bench.join_number(2, 4 * MIB)
    bench.wait(BUSY_SETTLE_S)
    assert kinds(bench.reconcile()) == ["MakePlan"]
    assert bench.serving is served
    for running, waiting in ((1, 0), (3, 4)):
        bench.note(events.BusyChanged(running, waiting))
        bench.wait(60.0)
        assert bench.reconcile() == []
    bench.note(events.BusyChanged(0, 0))
    assert kinds(bench.reconcile())[0] == "MakePlan"
