"""When another plan is worth a move."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.planning_values import HEAD, capacity, model_facts, node_id, settings, timed
from transport.messages import Plan
from vramancer_cli.planning.facts import DeviceCapacity
from vramancer_cli.planning.placement import place
from vramancer_cli.planning.worth import (
    DRIFT,
    IDLE_GAIN,
    MOVE_S,
    Traffic,
    declined_reasons,
    has_drifted,
    move_s,
    moved_bytes,
    worth_moving,
)

ONE = node_id(1)
IDLE, BUSY = Traffic(), Traffic(2, 0, 500)
FACTS = model_facts()
RATES = {HEAD: 1e6, ONE: 1e6}


def planned(*nodes: DeviceCapacity) -> Plan:
    return place(FACTS, nodes, HEAD, settings(), 1)


SLOW, FAST = timed(0, 10), timed(1, 1, round_trip_ms=1)
ALONE, TOGETHER = planned(SLOW), planned(SLOW, FAST)
BOTH = (SLOW, FAST)


def test_a_much_faster_newcomer_is_worth_it_idle_or_not() -> None:
    for traffic in (IDLE, BUSY):
        assert worth_moving(ALONE, TOGETHER, BOTH, traffic, RATES)
        assert not worth_moving(TOGETHER, ALONE, BOTH, traffic, RATES)


def test_what_is_regained_in_a_minute_must_pay_for_the_move() -> None:
    slow_disk = {HEAD: 1e6, ONE: 100.0}
    assert not worth_moving(ALONE, TOGETHER, BOTH, BUSY, slow_disk)
    assert worth_moving(ALONE, TOGETHER, BOTH, IDLE, slow_disk)
    assert not worth_moving(ALONE, TOGETHER, BOTH, replace(BUSY, running_tokens=1_000_000), RATES)


def test_a_move_costs_loading_what_moves_and_computing_again() -> None:
    moved = moved_bytes(ALONE, TOGETHER)
    assert moved == {ONE: sum(stage.weights_bytes for stage in TOGETHER.stages if stage.node == ONE)}
    assert moved_bytes(TOGETHER, TOGETHER) == {ONE: 0}
    timed_prefill = (SLOW, replace(FAST, layer_token_s=0.0001))
    layers = sum(len(stage.layers) for stage in TOGETHER.stages)
    cost_s = move_s(ALONE, TOGETHER, timed_prefill, Traffic(1, 0, 100), RATES)
    assert round(cost_s, 9) == round(MOVE_S + moved[ONE] / 1e6 + 100 * layers * 0.0001, 9)


@given(st.floats(1 / IDLE_GAIN + 0.01, IDLE_GAIN - 0.01), st.sampled_from((IDLE, BUSY)))
def test_what_may_be_noise_is_never_worth_a_move(factor: float, traffic: Traffic) -> None:
    """Two machines that are alike but for noise, each of which could hold everything."""
    head, other = timed(0, 10), timed(1, 10 * factor)
    here, there = planned(head), planned(timed(0, 100), timed(1, 1))
    assert {stage.node for stage in there.stages} == {ONE}
    assert not worth_moving(here, there, (head, other), traffic, RATES)


@given(st.floats(0.1, 100.0), st.floats(0.1, 100.0), st.sampled_from((IDLE, BUSY)))
def test_never_there_and_back(one_ms: float, other_ms: float, traffic: Traffic) -> None:
    nodes = (timed(0, one_ms), timed(1, other_ms, round_trip_ms=0.5))
    there = worth_moving(ALONE, TOGETHER, nodes, traffic, RATES)
    assert not (there and worth_moving(TOGETHER, ALONE, nodes, traffic, RATES))


def test_without_timings_room_decides() -> None:
    small, large = place(FACTS, [capacity(0, 70_000)], HEAD, settings(), 1), ALONE
    nodes = [capacity(0, 100_000)]
    assert worth_moving(small, large, nodes, IDLE, {})
    assert not worth_moving(small, large, nodes, BUSY, {})
    assert worth_moving(replace_blocks(small, 4), replace_blocks(small, 8), nodes, Traffic(1, 1), {})


def replace_blocks(plan: Plan, count: int) -> Plan:
    return type(plan)(**{name: getattr(plan, name) for name in plan.__struct_fields__} | {"block_count": count})


def test_drift_is_the_first_measurement_and_a_great_change() -> None:
    now = (replace(SLOW, layer_s=0.010),)
    assert has_drifted({}, now)
    assert not has_drifted({(HEAD, 0): 0.010 * (DRIFT - 0.01)}, now)
    assert has_drifted({(HEAD, 0): 0.010 * DRIFT * 1.01}, now)
    assert has_drifted({(HEAD, 0): 0.010 / DRIFT / 1.01}, now)
    assert not has_drifted({(HEAD, 0): 0.010}, (SLOW,)), "what is not measured has not changed"


def test_who_is_declined_is_told_why() -> None:
    reasons = declined_reasons(ALONE, TOGETHER, BOTH)
    assert reasons[HEAD] == ALONE.reasons[HEAD]
    assert reasons[ONE].startswith("in reserve: would gain less than a move costs: 80 ms -> 9 ms")
    assert declined_reasons(ALONE, TOGETHER, (capacity(0, 1), capacity(1, 1)))[ONE] == "in reserve"
