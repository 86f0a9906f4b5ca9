"""What a token takes on a plan, by what was measured."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.planning_values import HEAD, capacity, model_facts, node_id, settings, timed
from vramancer_cli.planning.placement import place
from vramancer_cli.planning.speed import predicted_token_s, speeds_of

ONE, TWO = node_id(1), node_id(2)


def test_layers_and_trips_add_up() -> None:
    devices = [timed(0, 4, round_trip_ms=9), timed(1, 2, round_trip_ms=6), timed(2, 1, round_trip_ms=10)]
    speeds = speeds_of(devices, HEAD, 0, 0)
    assert speeds is not None
    alone_s = speeds.token_s([((HEAD, 0), 5)])
    assert round(alone_s, 9) == 0.020
    assert round(speeds.token_s([((HEAD, 0), 2), ((ONE, 0), 3)]), 9) == 0.008 + 0.006 + 0.006
    both_s = speeds.token_s([((ONE, 0), 3), ((TWO, 0), 2)])
    assert round(both_s, 9) == 0.006 + 0.002 + 0.003 + 0.005 + 0.005
    assert speeds.token_s([((ONE, 0), 3), ((TWO, 0), 0)]) == speeds.token_s([((ONE, 0), 3)]), "nobody goes there"


def test_without_a_timing_nothing_is_predicted() -> None:
    assert speeds_of([timed(0, 1), capacity(1, 100)], HEAD, 10, 10) is None
    assert speeds_of([timed(0, 1), replace(capacity(1, 100), layer_s=0.1)], HEAD, 10, 10) is not None


def test_one_that_has_served_tells_how_the_timings_of_the_others_are_to_be_read() -> None:
    """What a small test cannot see takes as many times as long everywhere."""
    devices = [replace(timed(0, 1), layer_s=0.003), timed(1, 2)]
    speeds = speeds_of(devices, HEAD, 0, 0)
    assert speeds is not None
    assert speeds.layer_s == {(HEAD, 0): 0.003, (ONE, 0): 0.006}


@given(st.floats(1e-6, 1.0), st.floats(0.0, 1.0))
def test_a_slower_device_never_makes_a_token_faster(layer_s: float, round_trip_s: float) -> None:
    facts = model_facts()
    nodes = (timed(0, 1, limit_bytes=25_000), timed(1, 1, limit_bytes=60_000))
    plan = place(facts, nodes, HEAD, settings(), 1)
    slow = [nodes[0], replace(nodes[1], layer_s=nodes[1].layer_s + layer_s, round_trip_s=round_trip_s)]
    was_s, is_s = predicted_token_s(plan, [nodes[0], replace(nodes[1], layer_s=1e-6)]), predicted_token_s(plan, slow)
    assert was_s is not None and is_s is not None
    assert is_s >= was_s


def test_a_node_that_is_gone_has_no_speed() -> None:
    plan = place(model_facts(), (timed(0, 1, limit_bytes=25_000), timed(1, 1, limit_bytes=60_000)), HEAD, settings(), 1)
    assert any(stage.node == ONE for stage in plan.stages)
    assert predicted_token_s(plan, [timed(0, 1)]) is None
