"""Who gets layers at all, by speed: never over a room, never slower than what is obvious, and with a reason."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.planning_values import HEAD, capacity, model_facts, models, node_id, settings, timed
from transport.messages import Plan
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.planning.choice import choose
from vramancer_cli.planning.facts import DeviceCapacity, PlanSettings
from vramancer_cli.planning.placement import place
from vramancer_cli.planning.plan import validate
from vramancer_cli.planning.speed import predicted_token_s, speeds_of

ONE, TWO, THREE = node_id(1), node_id(2), node_id(3)
FACTS = model_facts()


@st.composite
def timed_nodes(draw: st.DrawFn) -> tuple[DeviceCapacity, ...]:
    count = draw(st.integers(1, 5))
    return tuple(
        timed(
            number,
            draw(st.floats(0.01, 100.0)),
            limit_bytes=draw(st.integers(0, 200_000)) + (50_000 if number == 0 else 0),
            round_trip_ms=draw(st.floats(0.0, 200.0)),
        )
        for number in range(count)
    )


def planned(*nodes: DeviceCapacity, chosen: PlanSettings | None = None, facts: ModelFacts = FACTS) -> Plan:
    return place(facts, nodes, HEAD, chosen or settings(), 1)


def layers(plan: Plan) -> dict[str, int]:
    return {stage.node: len(stage.layers) for stage in plan.stages}


@given(models(), timed_nodes())
def test_the_plan_is_sound_and_nobody_holds_more_than_its_limit(
    facts: ModelFacts, nodes: tuple[DeviceCapacity, ...]
) -> None:
    plan = planned(*nodes, facts=facts)
    validate(plan, facts, {node.place: node.limit_bytes for node in nodes})
    assert place(facts, nodes[::-1], HEAD, settings(), 1) == plan
    assert plan.reasons.keys() == {node.node for node in nodes}


@given(timed_nodes())
def test_a_token_is_hardly_slower_than_with_any_one_node_that_holds_all(nodes: tuple[DeviceCapacity, ...]) -> None:
    layer_bytes, rooms = [1000] * 8, [node.limit_bytes for node in nodes]
    speeds = speeds_of(nodes, HEAD, 1000, 0)
    assert speeds is not None
    choice = choose(layer_bytes, rooms, nodes, speeds)
    if choice is None:
        assert sum(room // 1000 for room in rooms) < 8
        return
    token_s = speeds.token_s([(node.place, len(part)) for node, part in zip(nodes, choice.ranges, strict=True)])
    for node, room in zip(nodes, rooms, strict=True):
        if room >= 8000 and all(rooms[other] >= 8000 for other in range(len(nodes))):
            assert token_s <= speeds.token_s([(node.place, 8)]) * (1 + 1e-9)


def test_one_machine_that_holds_everything_is_preferred_where_it_is_faster() -> None:
    plan = planned(timed(0, 5), timed(1, 5, round_trip_ms=2))
    assert layers(plan) == {HEAD: 8}
    assert plan.reasons[ONE] == "in reserve: would make a token slower: 40 ms -> 42 ms"


def test_a_worker_that_is_much_faster_gets_all_layers_and_the_head_keeps_the_ends() -> None:
    plan = planned(timed(0, 20), timed(1, 1, round_trip_ms=4))
    assert layers(plan) == {ONE: 8}
    assert plan.ends == HEAD
    assert plan.reasons[HEAD].startswith("both ends")
    assert "so much faster that its share is less than a layer" in plan.reasons[HEAD]


def test_layers_are_in_proportion_to_speed_as_far_as_memory_goes() -> None:
    """None of the three holds all; the fast one would have 8 of 11 parts of the layers, and has room for 5."""
    small = 28_000
    fast, slow, slower = (
        timed(number, ms, limit_bytes=limit, round_trip_ms=0.1)
        for number, ms, limit in ((1, 1, 24_000), (2, 4, small), (3, 8, small))
    )
    plan = planned(timed(0, 50, limit_bytes=9000), fast, slow, slower, chosen=settings(max_sequences=1))
    held = layers(plan)
    assert held[ONE] > held[TWO] >= held.get(THREE, 0)


def test_a_node_behind_a_slow_link_is_left_out_while_the_others_hold_the_model() -> None:
    near, far = timed(1, 1, limit_bytes=30_000, round_trip_ms=1), timed(2, 1, limit_bytes=40_000, round_trip_ms=80)
    plan = planned(timed(0, 2, limit_bytes=60_000), near, far, chosen=settings(max_sequences=1))
    assert TWO not in layers(plan)
    assert plan.reasons[TWO].startswith("in reserve: would make a token slower")
    small = replace(near, limit_bytes=15_000)
    needed = planned(timed(0, 2, limit_bytes=12_000), small, far, chosen=settings(max_sequences=1))
    assert TWO in layers(needed), "without it the model does not fit"


def test_a_person_who_prefers_room_gets_all_nodes_to_hold_what_they_can() -> None:
    nodes = timed(0, 5), timed(1, 50, round_trip_ms=200)
    assert set(layers(planned(*nodes, chosen=replace(settings(), prefer="room")))) == {HEAD, ONE}
    assert set(layers(planned(*nodes))) == {HEAD}


def test_where_there_is_hardly_room_all_hold_what_they_can() -> None:
    """Room for more than one context is worth more than a trip."""
    nodes = [timed(number, 1, limit_bytes=22_000, round_trip_ms=5) for number in range(3)]
    untimed = [replace(node, speed=None) for node in nodes]
    assert layers(planned(*nodes)) == layers(planned(*untimed))


def test_without_timings_room_decides_as_ever() -> None:
    nodes = [capacity(0, 100_000), timed(1, 1)]
    assert set(layers(planned(*nodes))) == {HEAD, ONE}
    assert predicted_token_s(planned(*nodes), nodes) is None
