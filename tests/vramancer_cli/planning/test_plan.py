"""What moves between plans, and plans that are not sound."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given

from tests.helpers.planning_values import HEAD, MIB, capacities, capacity, model_facts, models, node_id, settings
from transport.messages import Plan
from transport.types import LayerRange
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.planning.facts import NodeCapacity
from vramancer_cli.planning.placement import place
from vramancer_cli.planning.plan import StageChange, diff, held_bytes, same_deployment, validate, with_reasons

FACTS = model_facts(layers=(MIB,) * 8, ends=MIB)
NODES = (capacity(0, 24 * MIB), capacity(1, 16 * MIB), capacity(2, 16 * MIB))
PLAN = place(FACTS, NODES, HEAD, settings(), 1)


def moved(start: int, middle: int) -> Plan:
    """PLAN with its first two cuts elsewhere."""
    cuts = (0, start, middle, 8)
    stages = [
        msgspec.structs.replace(stage, layers=LayerRange(cuts[i], cuts[i + 1])) for i, stage in enumerate(PLAN.stages)
    ]
    return msgspec.structs.replace(PLAN, epoch=2, stages=tuple(stages))


def test_a_first_plan_loads_everything() -> None:
    changes = diff(None, PLAN)
    assert changes.keys() == {HEAD, node_id(1), node_id(2)}
    assert all(change.kept == () and change.dropped == () for change in changes.values())
    assert [change.loaded[0] for change in changes.values()] == [stage.layers for stage in PLAN.stages]


def test_only_what_moves_is_loaded_and_dropped() -> None:
    changes = diff(moved(2, 5), moved(3, 4))
    assert changes[HEAD] == StageChange((LayerRange(0, 2),), (LayerRange(2, 3),), ())
    assert changes[node_id(1)] == StageChange((LayerRange(3, 4),), (), (LayerRange(2, 3), LayerRange(4, 5)))
    assert changes[node_id(2)] == StageChange((LayerRange(5, 8),), (LayerRange(4, 5),), ())


def test_a_lost_node_drops_and_disjoint_ranges_share_nothing() -> None:
    fewer = place(FACTS, (capacity(0, 100 * MIB),), HEAD, settings(), 2)
    changes = diff(PLAN, fewer)
    assert changes[node_id(2)] == StageChange((), (), (PLAN.stages[2].layers,))
    swapped = diff(moved(1, 2), moved(2, 7))
    assert swapped[node_id(1)] == StageChange((), (LayerRange(2, 7),), (LayerRange(1, 2),))


def test_another_dtype_or_checkpoint_keeps_nothing() -> None:
    other = msgspec.structs.replace(PLAN, dtype="bfloat16")
    assert all(not change.kept and change.loaded and change.dropped for change in diff(PLAN, other).values())
    model = msgspec.structs.replace(PLAN.model, digest="another")
    assert not any(change.kept for change in diff(PLAN, msgspec.structs.replace(PLAN, model=model)).values())


@given(models(), capacities(ample=True), capacities(ample=True))
def test_kept_and_loaded_make_the_new_plan_kept_and_dropped_the_old(
    facts: ModelFacts, before: tuple[NodeCapacity, ...], after: tuple[NodeCapacity, ...]
) -> None:
    old, new = (place(facts, nodes, HEAD, settings(), 1) for nodes in (before, after))
    changes = diff(old, new)
    for plan, parts in ((new, ("kept", "loaded")), (old, ("kept", "dropped"))):
        held = {stage.node: set(range(stage.layers.start, stage.layers.end)) for stage in plan.stages}
        for node, change in changes.items():
            ranges = [r for part in parts for r in getattr(change, part)]
            assert all(len(r) for r in ranges)
            assert sum(len(r) for r in ranges) == len(held.get(node, ()))
            assert {layer for r in ranges for layer in range(r.start, r.end)} == held.get(node, set())


def test_same_deployment_looks_past_epoch_and_sentences() -> None:
    assert same_deployment(PLAN, with_reasons(msgspec.structs.replace(PLAN, epoch=9), {HEAD: "because"}))
    assert not same_deployment(PLAN, moved(1, 2))


def test_a_sound_plan_passes_and_the_limits_are_looked_at() -> None:
    validate(PLAN, FACTS)
    validate(PLAN, FACTS, held_bytes(PLAN))
    with pytest.raises(ValueError, match="over its limit"):
        validate(PLAN, FACTS, {**held_bytes(PLAN), HEAD: held_bytes(PLAN)[HEAD] - 1})
    with pytest.raises(ValueError, match="over its limit"):
        validate(PLAN, FACTS, {HEAD: 1 << 40})


def with_first(**changes: object) -> Plan:
    first = msgspec.structs.replace(PLAN.stages[0], **changes)
    return msgspec.structs.replace(PLAN, stages=(first, *PLAN.stages[1:]))


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (moved(0, 4), "do not follow"),
        (with_first(layers=LayerRange(0, 1)), "do not follow"),
        (with_first(layers=LayerRange(1, 4)), "do not follow"),
        (with_first(node=node_id(1)), "two stages"),
        (msgspec.structs.replace(PLAN, stages=PLAN.stages[:-1]), "layers are placed"),
        (msgspec.structs.replace(PLAN, stages=()), "0 of 8"),
        (msgspec.structs.replace(PLAN, block_count=1), "context"),
        (with_first(weights_bytes=1), "weights"),
        (with_first(kv_bytes=1), "KV"),
        (with_first(workspace_bytes=1), "workspace"),
    ],
)
def test_a_plan_that_is_not_sound(plan: Plan, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        validate(plan, FACTS)
