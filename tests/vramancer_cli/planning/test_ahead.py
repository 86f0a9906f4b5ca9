"""What is worth fetching before a node is lost: all that the plan after it would lack, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import assume, given

from tests.helpers.planning_values import HEAD, MIB, capacities, capacity, model_facts, models, node_id, settings
from transport.messages import Plan
from transport.types import LayerRange
from vramancer_cli.errors import DoesNotFitError
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.planning.ahead import layers_ahead
from vramancer_cli.planning.facts import DeviceCapacity
from vramancer_cli.planning.placement import place


def try_place(facts: ModelFacts, devices: Sequence[DeviceCapacity]) -> Plan | None:
    try:
        return place(facts, devices, HEAD, settings(), 1)
    except DoesNotFitError:
        return None


def layers_of(plan: Plan, node: str) -> set[int]:
    return {layer for s in plan.stages if s.node == node for layer in range(s.layers.start, s.layers.end)}


@given(models(), capacities(ample=True))
def test_whoever_is_lost_the_others_have_what_the_next_plan_gives_them(
    facts: ModelFacts, devices: tuple[DeviceCapacity, ...]
) -> None:
    plan = try_place(facts, devices)
    assume(plan is not None)
    assert plan is not None
    ahead = layers_ahead(plan, devices, lambda left: try_place(facts, left))
    assert HEAD not in ahead
    wanted: dict[str, set[int]] = {node: set() for node in ahead}
    for lost in {device.node for device in devices} - {HEAD}:
        then = try_place(facts, [device for device in devices if device.node != lost])
        if then is None or lost not in plan.firsts():
            continue
        for node in ahead:
            has = layers_of(plan, node) | {n for part in ahead[node] for n in range(part.start, part.end)}
            assert layers_of(then, node) <= has
            wanted[node] |= layers_of(then, node) - layers_of(plan, node)
    for node, parts in ahead.items():
        assert {n for part in parts for n in range(part.start, part.end)} == wanted[node], "more than is of use"
        assert all(before.end < after.start for before, after in pairwise(parts))


def test_where_nobody_can_be_spared_nothing_is_worth_fetching() -> None:
    facts = model_facts()
    devices = [capacity(0, 25_000), capacity(1, 20_000), capacity(2, 20_000)]
    plan = try_place(facts, devices)
    assert plan is not None and len(plan.firsts()) == 3
    assert layers_ahead(plan, devices, lambda left: try_place(facts, left)) == {node_id(1): (), node_id(2): ()}


def test_two_that_share_a_model_that_each_could_hold_want_each_others_layers() -> None:
    facts = model_facts()
    devices = [capacity(0, 9_000), capacity(1, MIB), capacity(2, MIB)]
    plan = try_place(facts, devices)
    assert plan is not None
    ahead = layers_ahead(plan, devices, lambda left: try_place(facts, left))
    assert ahead == {
        node_id(1): (LayerRange(4, 8),) if layers_of(plan, node_id(1)) == {0, 1, 2, 3} else (LayerRange(0, 4),),
        node_id(2): (LayerRange(0, 4),) if layers_of(plan, node_id(1)) == {0, 1, 2, 3} else (LayerRange(4, 8),),
    }
