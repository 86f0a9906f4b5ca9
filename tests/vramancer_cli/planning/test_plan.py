"""Plans that are the same work, and plans that are not sound."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from tests.helpers.planning_values import HEAD, MIB, capacity, model_facts, node_id, settings
from transport.messages import Plan, WindowGroup
from transport.types import LayerRange
from vramancer_cli.models.facts import WindowElements
from vramancer_cli.planning.placement import place
from vramancer_cli.planning.plan import held_bytes, same_deployment, validate, with_reasons

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


def test_same_deployment_looks_past_epoch_and_sentences() -> None:
    assert same_deployment(PLAN, with_reasons(msgspec.structs.replace(PLAN, epoch=9), {HEAD: "because"}))
    assert not same_deployment(PLAN, moved(1, 2))


def test_a_sound_plan_passes_and_the_limits_are_looked_at() -> None:
    validate(PLAN, FACTS)
    validate(PLAN, FACTS, held_bytes(PLAN))
    with pytest.raises(ValueError, match="over its limit"):
        validate(PLAN, FACTS, {**held_bytes(PLAN), (HEAD, 0): held_bytes(PLAN)[HEAD, 0] - 1})
    with pytest.raises(ValueError, match="over its limit"):
        validate(PLAN, FACTS, {(HEAD, 0): 1 << 40})


def test_a_window_group_is_paid_for_and_holds_one_sequence() -> None:
    facts = replace(FACTS, windows=(WindowElements(8, (2,) * 8),))
    plan = place(facts, NODES, HEAD, settings(context_tokens=256), 1)
    validate(plan, facts)
    [window] = plan.windows
    few = msgspec.structs.replace(plan, windows=(WindowGroup(8, 1),))
    with pytest.raises(ValueError, match="windows of 8"):
        validate(few, facts)
    more = msgspec.structs.replace(plan, windows=(WindowGroup(8, window.block_count + 1),))
    with pytest.raises(ValueError, match="KV"):
        validate(more, facts)


def test_a_cache_in_int8_is_paid_for_as_such() -> None:
    facts = replace(FACTS, kv_elements_per_token=(256,) * 8, kv_vectors_per_token=(2,) * 8)
    plans = [place(facts, NODES, HEAD, replace(settings(), kv_cache=held), 1) for held in ("plain", "int8")]
    for plan in plans:
        validate(plan, facts)
    plain, rounded = (sum(stage.kv_bytes for stage in plan.stages) / plan.block_count for plan in plans)
    assert rounded == plain * (256 + 8) / (256 * 4)
    with pytest.raises(ValueError, match="KV"):
        validate(msgspec.structs.replace(plans[1], kv_cache="plain"), facts)


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
        (with_first(node=node_id(2), position=1), "do not follow each other"),
        (msgspec.structs.replace(PLAN, stages=PLAN.stages[:-1]), "layers are placed"),
        (msgspec.structs.replace(PLAN, stages=()), "0 of 8"),
        (msgspec.structs.replace(PLAN, block_count=1), "context"),
        (with_first(weights_bytes=1), "weights"),
        (with_first(kv_bytes=1), "KV"),
        (with_first(workspace_bytes=1), "workspace"),
        (msgspec.structs.replace(PLAN, state_slots=1), "state slots"),
        (msgspec.structs.replace(PLAN, windows=(WindowGroup(8, 99),)), "windows of 8"),
    ],
)
def test_a_plan_that_is_not_sound(plan: Plan, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        validate(plan, FACTS)
