"""Placement's promises, on random models and nodes."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.helpers.planning_values import HEAD, MIB, capacities, capacity, model_facts, models, node_id, settings
from transport.messages import Plan, StagePlan, WindowGroup
from transport.types import LayerRange
from vramancer_cli.errors import DoesNotFitError
from vramancer_cli.models.cache_window import most_held_blocks
from vramancer_cli.models.facts import ModelFacts, WindowElements
from vramancer_cli.models.quantisation import Quantisable
from vramancer_cli.planning.facts import DeviceCapacity, Place, PlanSettings
from vramancer_cli.planning.placement import place
from vramancer_cli.planning.plan import held_bytes, same_deployment, validate

Nodes = tuple[DeviceCapacity, ...]
NODES = st.one_of(capacities(), capacities(ample=True))
SETTINGS = st.builds(
    settings, context_tokens=st.integers(1, 80), dtype=st.sampled_from(("auto", "float32", "bfloat16"))
)


def try_place(facts: ModelFacts, nodes: Nodes, chosen: PlanSettings) -> Plan | DoesNotFitError:
    try:
        return place(facts, nodes, HEAD, chosen, 1)
    except DoesNotFitError as error:
        return error


def at(stage: StagePlan) -> Place:
    return stage.node, stage.position


def raised(nodes: Nodes, index: int, more_bytes: int) -> Nodes:
    node = replace(nodes[index], limit_bytes=nodes[index].limit_bytes + more_bytes)
    return (*nodes[:index], node, *nodes[index + 1 :])


@given(models(), NODES, SETTINGS, st.randoms())
def test_every_layer_once_nobody_over_the_limit_and_the_listing_does_not_matter(
    facts: ModelFacts, nodes: Nodes, chosen: PlanSettings, rng: random.Random
) -> None:
    plan = try_place(facts, nodes, chosen)
    assume(isinstance(plan, Plan))
    assert isinstance(plan, Plan)
    validate(plan, facts, {node.place: node.limit_bytes for node in nodes})
    assert plan.reasons.keys() == {node.node for node in nodes}
    assert all(plan.reasons.values())
    shuffled = list(nodes)
    rng.shuffle(shuffled)
    assert place(facts, shuffled, HEAD, chosen, 1) == plan


@given(models(), NODES, SETTINGS)
def test_the_head_is_first_and_the_others_come_by_limit(facts: ModelFacts, nodes: Nodes, chosen: PlanSettings) -> None:
    plan = try_place(facts, nodes, chosen)
    assume(isinstance(plan, Plan))
    assert isinstance(plan, Plan)
    totals = {node.node: sum(n.limit_bytes for n in nodes if n.node == node.node) for node in nodes}
    order = [
        (stage.node != HEAD, -totals[stage.node] * (stage.node != HEAD), stage.node, stage.position)
        for stage in plan.stages
    ]
    assert order == sorted(order)
    assert plan.ends == HEAD


@given(models(), NODES, SETTINGS)
def test_spare_memory_becomes_blocks_until_the_tightest_stage_is_full(
    facts: ModelFacts, nodes: Nodes, chosen: PlanSettings
) -> None:
    plan = try_place(facts, nodes, chosen)
    assume(isinstance(plan, Plan))
    assert isinstance(plan, Plan)
    context_blocks = -(-chosen.context_tokens // chosen.block_tokens)
    most = context_blocks * chosen.max_sequences + 1
    assert context_blocks + 1 <= plan.block_count <= most
    limits = {node.place: node.limit_bytes for node in nodes}
    held = held_bytes(plan)
    elsewhere = {window.window_tokens: 0 for window in plan.windows}
    no_room_for_one_more = any(
        held[at(s)] + facts.kv_bytes(s.layers, plan.dtype, plan.block_tokens, elsewhere) > limits[at(s)]
        for s in plan.stages
    )
    assert plan.block_count == most or no_room_for_one_more


@given(models(stateful=True), st.one_of(NODES, capacities(ample=True)), SETTINGS)
def test_a_model_with_state_gets_slots_as_far_as_memory_goes(
    facts: ModelFacts, nodes: Nodes, chosen: PlanSettings
) -> None:
    plan = try_place(facts, nodes, chosen)
    assume(isinstance(plan, Plan))
    assert isinstance(plan, Plan)
    assert 1 <= plan.state_slots <= chosen.max_sequences
    limits = {node.place: node.limit_bytes for node in nodes}
    held = held_bytes(plan)
    no_room_for_one_more = any(held[at(s)] + facts.state_bytes(s.layers, 1) > limits[at(s)] for s in plan.stages)
    scarce = no_room_for_one_more or any(less_than_twice_the_states(plan, s, facts, limits[at(s)]) for s in plan.stages)
    assert plan.state_slots == chosen.max_sequences or scarce or more_blocks_than_at_least(plan)


def less_than_twice_the_states(plan: Plan, stage: StagePlan, facts: ModelFacts, limit_bytes: int) -> bool:
    """Half of what is over was offered to blocks, of which it does not hold one."""
    state_bytes = facts.state_bytes(stage.layers, 1)
    over_bytes = limit_bytes - held_bytes(plan)[at(stage)] + (plan.state_slots - 1) * state_bytes
    return over_bytes < 2 * plan.state_slots * state_bytes


def more_blocks_than_at_least(plan: Plan) -> bool:
    return plan.block_count > -(-plan.context_tokens // plan.block_tokens) + 1


@pytest.mark.parametrize(("limit_bytes", "slots", "blocks"), [(884, 1, 3), (1200, 2, 4), (1400, 3, 5), (5000, 4, 9)])
def test_states_and_blocks_share_what_is_left_over(limit_bytes: int, slots: int, blocks: int) -> None:
    """Weights 400; a state 100; a block 128, three of them at least and nine at most."""
    facts = model_facts(layers=(100,), ends=0, kv=(2,), state=(25,), workspace=0)
    plan = place(facts, (capacity(0, limit_bytes + 256),), HEAD, settings(), 1)
    assert plan.stages[0].workspace_bytes == 256
    assert (plan.state_slots, plan.block_count) == (slots, blocks)
    assert plan.stages[0].kv_bytes == slots * 100 + blocks * 128


@given(models(windowed=True), st.one_of(NODES, capacities(ample=True)), SETTINGS)
def test_a_window_gets_a_group_where_it_is_shorter_than_the_context(
    facts: ModelFacts, nodes: Nodes, chosen: PlanSettings
) -> None:
    plan = try_place(facts, nodes, chosen)
    assume(isinstance(plan, Plan))
    assert isinstance(plan, Plan)
    [part] = facts.windows
    held = most_held_blocks(part.window_tokens, chosen.max_step_tokens, chosen.block_tokens)
    shorter = held * chosen.block_tokens < chosen.context_tokens
    assert [window.window_tokens for window in plan.windows] == [part.window_tokens] * shorter
    for window in plan.windows:
        assert held < window.block_count <= (held + 1) * chosen.max_sequences


@pytest.mark.parametrize(
    ("limit_bytes", "windowed", "blocks"), [(6200, 8, 66), (7000, 10, 73), (20_000, 32, 210), (99_000, 32, 257)]
)
def test_windows_and_blocks_share_what_is_left_over(limit_bytes: int, windowed: int, blocks: int) -> None:
    """Weights 400; a block of group 0 takes 64, 65 at least and 257 at most. One of the windows' group takes 192: 64
    tokens back, 16 to roll back and 16 of a step touch 7 blocks, and one more is for the next of four sequences."""
    part = WindowElements(65, (3,))
    facts = model_facts(layers=(100,), ends=0, kv=(4,), windows=(part,), workspace=0)
    plan = place(facts, (capacity(0, limit_bytes + 4 * 1024 * 4),), HEAD, settings(context_tokens=1024), 1)
    assert plan.stages[0].workspace_bytes == 4 * 1024 * 4
    assert (plan.windows, plan.block_count) == ((WindowGroup(65, windowed),), blocks)
    assert plan.stages[0].kv_bytes == windowed * 192 + blocks * 64


def test_a_long_context_fits_where_only_windows_are_held() -> None:
    whole = model_facts(layers=(100,) * 6, ends=0, kv=(4,) * 6, workspace=0)
    windowed = replace(whole, windows=(WindowElements(64, (4, 4, 4, 4, 4, 0)),))
    assert isinstance(try_place(whole, (capacity(0, 160_000),), settings(context_tokens=2048)), DoesNotFitError)
    plan = place(windowed, (capacity(0, 160_000),), HEAD, settings(context_tokens=2048), 1)
    assert plan.context_tokens == 2048


def test_a_model_of_states_alone_uses_all_memory_for_them() -> None:
    facts = model_facts(layers=(100,), ends=0, kv=(0,), state=(25,), workspace=0)
    assert place(facts, (capacity(0, 700),), HEAD, settings(), 1).state_slots == 3


@given(models(), capacities(), SETTINGS)
def test_the_missing_bytes_are_exact(facts: ModelFacts, nodes: Nodes, chosen: PlanSettings) -> None:
    error = try_place(facts, nodes, chosen)
    assume(isinstance(error, DoesNotFitError))
    assert isinstance(error, DoesNotFitError)
    missing = error.missing_bytes
    assert missing > 0
    helped = [n for n in range(len(nodes)) if isinstance(try_place(facts, raised(nodes, n, missing), chosen), Plan)]
    assert helped
    assert any(f"'{nodes[n].name}'" in str(error) for n in helped), "the sentence names a node that it would help on"
    for index in range(len(nodes)):
        assert isinstance(try_place(facts, raised(nodes, index, missing - 1), chosen), DoesNotFitError)


@given(models(equal_layers=True), capacities(), SETTINGS)
def test_with_equal_layers_it_fits_whenever_enough_whole_layers_fit(
    facts: ModelFacts, nodes: Nodes, chosen: PlanSettings
) -> None:
    """Counted independently: the head's first device after the ends, each after its workspace, whole layers each."""
    dtype = "float32" if chosen.dtype == "auto" else chosen.dtype
    blocks = -(-chosen.context_tokens // chosen.block_tokens) + 1
    one = LayerRange(0, 1)
    kv_bytes = facts.kv_bytes(one, dtype, blocks * chosen.block_tokens) + facts.state_bytes(one, 1)
    layer_bytes = facts.weights_bytes(one, dtype) + kv_bytes
    step_bytes = facts.workspace_bytes(chosen.max_step_tokens)
    workspace = max(step_bytes, facts.kv_bytes(one, dtype, chosen.context_tokens))
    head_left = nodes[0].limit_bytes - facts.ends_bytes(dtype) - step_bytes
    left = [head_left, *(node.limit_bytes for node in nodes[1:])]
    room = sum(max(0, count - workspace) // layer_bytes for count in left)
    fits = head_left >= 0 and room >= facts.layer_count
    assert isinstance(try_place(facts, nodes, chosen), Plan) == fits


def test_three_nodes_that_hold_it_only_together() -> None:
    facts = model_facts(layers=(MIB,) * 8, ends=2 * MIB, workspace=1024)
    nodes = (capacity(0, 20 * MIB), capacity(2, 16 * MIB), capacity(1, 16 * MIB))
    plan = place(facts, nodes, HEAD, settings(), 7)
    assert [stage.node for stage in plan.stages] == [HEAD, node_id(1), node_id(2)]
    assert [len(stage.layers) for stage in plan.stages] == [2, 3, 3]
    assert plan.epoch == 7
    assert plan.reasons[HEAD].startswith("layers 0-1: ")
    assert "also holds both ends" in plan.reasons[HEAD]
    for node in nodes:
        with pytest.raises(DoesNotFitError):
            place(facts, (replace(node, node=HEAD),), HEAD, settings(), 1)


def test_a_head_with_room_for_the_ends_alone_holds_no_layers() -> None:
    facts = model_facts(layers=(MIB,) * 2, ends=MIB, workspace=0)
    plan = place(facts, (capacity(0, 5 * MIB), capacity(1, 20 * MIB)), HEAD, settings(), 1)
    assert [stage.node for stage in plan.stages] == [node_id(1)]
    assert plan.reasons[HEAD].startswith("both ends (4.0 MiB) and no layers: its 5.0 MiB limit leaves 1.0 MiB")
    assert held_bytes(plan)[HEAD, 0] == 4 * MIB


def test_a_head_that_cannot_pay_for_the_ends_is_what_is_missing() -> None:
    facts = model_facts(layers=(MIB,), ends=MIB, workspace=0)
    with pytest.raises(DoesNotFitError) as caught:
        place(facts, (capacity(0, 3 * MIB), capacity(1, 100 * MIB)), HEAD, settings(), 1)
    assert caught.value.missing_bytes == MIB
    assert str(caught.value) == (
        "Both ends of 'tiny' take 4.0 MiB on 'node-0', the head, which may hold 3.0 MiB: 1.0 MiB more would do there."
    )
    assert "on the head" in caught.value.hint


@pytest.mark.parametrize(
    "nodes", [(), (capacity(1, 5),), (capacity(0, 5), capacity(0, 6)), (capacity(0, 5, position=1),)]
)
def test_a_plan_without_head_or_with_a_device_twice_is_a_bug(nodes: Nodes) -> None:
    with pytest.raises(ValueError, match="head"):
        place(model_facts(), nodes, HEAD, settings(), 1)


def test_the_devices_of_a_node_stay_together_in_its_own_order() -> None:
    facts = model_facts(layers=(MIB,) * 8, ends=2 * MIB, workspace=1024)
    own = (capacity(0, 13 * MIB), capacity(0, 9 * MIB, position=1))
    lent = (capacity(1, 7 * MIB), capacity(1, 9 * MIB, position=1))
    plan = place(facts, (*lent[::-1], capacity(2, 12 * MIB), *own), HEAD, settings(), 1)
    order = [(HEAD, 0), (HEAD, 1), (node_id(1), 0), (node_id(1), 1), (node_id(2), 0)]
    assert [at(stage) for stage in plan.stages] == order
    assert [list(plan.run(index)) for index in (0, 2, 4)] == [[0, 1], [2, 3], [4]]
    assert plan.reasons[HEAD].startswith("On cpu: layer 0: ")
    assert "also holds both ends (8.1 MiB). On cpu:1: layers 1-2: " in plan.reasons[HEAD]
    assert plan.reasons[node_id(2)].startswith("layer")


def test_more_on_one_of_two_devices_is_what_is_missing() -> None:
    facts = model_facts(layers=(MIB,) * 4, ends=MIB, workspace=0)
    nodes = (capacity(0, 5 * MIB), capacity(1, 9 * MIB), capacity(1, 8 * MIB, position=1))
    with pytest.raises(DoesNotFitError, match="'node-1 cpu:1'") as caught:
        place(facts, nodes, HEAD, settings(), 1)
    assert isinstance(place(facts, raised(nodes, 2, caught.value.missing_bytes), HEAD, settings(), 1), Plan)


def test_a_quantised_plan_says_so_is_sound_and_fits_where_the_plain_one_does_not():
    part = Quantisable(outputs=8, inputs=1024, count=8)
    facts = model_facts((65_536,) * 8, quantisable=((part,),) * 8)
    quantised = replace(settings(dtype="bfloat16"), quantize="int4")
    most = facts.weights_bytes(LayerRange(0, 8), "bfloat16", "int4") + facts.quantising_bytes("bfloat16", "int4")
    nodes = [capacity(0, most + 10_000)]
    found = place(facts, nodes, HEAD, replace(quantised, max_sequences=1), 1)
    assert found.quantize == "int4"
    validate(found, facts, {(HEAD, 0): most + 10_000})
    with pytest.raises(ValueError, match="weights"):
        validate(msgspec.structs.replace(found, quantize="int8"), facts)
    assert not same_deployment(found, msgspec.structs.replace(found, quantize="none"))
