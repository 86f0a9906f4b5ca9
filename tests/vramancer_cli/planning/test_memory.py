"""What things cost, counted by hand, and the dtype that decides it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.planning_values import capacity, model_facts, settings
from transport.types import DeviceKind, LayerRange
from vramancer_cli.models.facts import WindowElements
from vramancer_cli.models.quantisation import INT8_GROUPED, Quantisable, quantising_bytes
from vramancer_cli.planning.memory import SMALL_MODEL_BYTES, Pieces, choose_dtype, context_tokens, price

SMALL = model_facts(checkpoint_dtype="float16")
LARGE = model_facts(layers=(SMALL_MODEL_BYTES // 16,) * 4, checkpoint_dtype="float16")  # its ends tip it over


def test_prices_counted_by_hand() -> None:
    facts = model_facts(layers=(10, 20), ends=7, kv=(2, 3), workspace=5)
    costs = price(facts, settings(context_tokens=33, max_sequences=4), "bfloat16")
    assert costs.workspace_bytes == 5 * 16 * 4  # float32 whatever the dtype
    assert costs.ends_bytes == 7 * 2 + costs.workspace_bytes
    assert costs.weights_bytes == (20, 40)
    assert costs.blocks.layer_bytes == (2 * 16 * 2, 3 * 16 * 2)
    assert (costs.blocks.least, costs.blocks.most) == (4, 13)  # 33 tokens are 3 blocks of 16
    assert costs.layer_bytes() == (20 + 64 * 4, 40 + 96 * 4)
    assert costs.blocks.stage_bytes(LayerRange(0, 2), 3) == 3 * (64 + 96)
    assert costs.stage_weights_bytes(LayerRange(1, 2)) == 40


def test_states_are_priced_by_the_sequence_and_in_float32() -> None:
    facts = model_facts(layers=(10, 20), kv=(2, 0), state=(0, 7))
    costs = price(facts, settings(context_tokens=16, max_sequences=4), "bfloat16")
    assert costs.states.layer_bytes == (0, 7 * 4)
    assert (costs.states.least, costs.states.most) == (1, 4)
    assert costs.layer_bytes() == (20 + 2 * 64, 40 + 28)
    assert costs.states.stage_bytes(LayerRange(0, 2), 3) == 3 * 28
    without = price(model_facts(layers=(10, 20)), settings(), "bfloat16")
    assert (without.states, without.windows) == (Pieces((0, 0), 0, 0), ())


def test_a_window_that_is_shorter_than_the_context_is_priced_by_the_window() -> None:
    windows = (WindowElements(5, (2, 0)), WindowElements(100, (0, 1)))
    facts = model_facts(layers=(10, 20), kv=(2, 3), windows=windows)
    costs = price(facts, settings(context_tokens=100, max_sequences=4), "bfloat16")
    assert costs.blocks.layer_bytes == (0, 3 * 16 * 2), "the longer window's layer keeps all"
    held = 4  # 5 - 1 tokens, 16 to go back and a step of 16 touch four blocks of 16 at most
    assert costs.windows == (Pieces((64, 0), held + 1, 4 * (held + 1), window_tokens=5),)
    assert costs.layer_bytes() == (20 + 64 * 5, 40 + 96 * 8)
    assert costs.stage_cache_bytes(LayerRange(0, 2), (8, 5, 0)) == 8 * 96 + 5 * 64
    assert price(facts, settings(context_tokens=64), "bfloat16").windows == ()


def test_a_cache_in_int8_is_a_byte_for_each_element_and_a_scale_for_each_vector() -> None:
    facts = replace(
        model_facts(layers=(10, 20), kv=(20, 24), windows=(WindowElements(5, (20, 0), (4, 0)),), workspace=0),
        kv_vectors_per_token=(4, 6),
    )
    costs = price(facts, replace(settings(context_tokens=100), kv_cache="int8"), "bfloat16")
    assert costs.blocks.layer_bytes == (0, 16 * (24 + 6 * 4))
    assert costs.windows[0].layer_bytes == (16 * (20 + 4 * 4), 0)
    assert costs.workspace_bytes == 100 * (24 * 2 + 24 + 6 * 4), "a context as held, and turned back"


def test_a_stages_workspace_has_room_to_copy_one_contexts_kv() -> None:
    facts = model_facts(layers=(10, 20), ends=7, kv=(2, 30), workspace=1)
    costs = price(facts, settings(context_tokens=100), "bfloat16")
    assert costs.workspace_bytes == 30 * 100 * 2
    assert costs.ends_bytes == 7 * 2 + 1 * 16 * 4  # the ends copy no KV


def test_the_context_is_cut_to_what_the_checkpoint_declares() -> None:
    facts = model_facts(context_tokens=64)
    assert context_tokens(facts, settings(context_tokens=100)) == 64
    assert context_tokens(facts, settings(context_tokens=48)) == 48
    assert price(facts, settings(context_tokens=100), "float32").blocks.least == 5


@pytest.mark.parametrize("kinds", [("cpu",), ("cuda", "cpu")])
def test_auto_takes_float32_for_a_small_model_with_a_cpu(kinds: tuple[DeviceKind, ...]) -> None:
    nodes = [capacity(i, 1, kind) for i, kind in enumerate(kinds)]
    assert choose_dtype("auto", SMALL, nodes) == "float32"


@pytest.mark.parametrize(
    ("kinds", "declared", "chosen"),
    [
        (("cuda",), "float16", "float16"),
        (("cuda", "cpu"), "float16", "bfloat16"),
        (("cpu",), "bfloat16", "bfloat16"),
        (("cpu",), "float32", "float32"),
        (("cuda",), "float8_e4m3fn", "bfloat16"),
    ],
)
def test_auto_takes_the_checkpoints_dtype_for_a_large_model(
    kinds: tuple[DeviceKind, ...], declared: str, chosen: str
) -> None:
    facts = model_facts(layers=LARGE.layer_parameters, checkpoint_dtype=declared)
    assert choose_dtype("auto", facts, [capacity(i, 1, kind) for i, kind in enumerate(kinds)]) == chosen


def test_a_small_model_on_gpus_alone_keeps_its_dtype_and_the_border_is_2_gib() -> None:
    assert choose_dtype("auto", SMALL, [capacity(0, 1, "cuda")]) == "float16"
    exact = model_facts(layers=LARGE.layer_parameters, ends=0)
    assert choose_dtype("auto", exact, [capacity(0, 1)]) == "float32"
    over = model_facts(layers=LARGE.layer_parameters, ends=1)
    assert choose_dtype("auto", over, [capacity(0, 1)]) == "bfloat16"


def test_what_is_asked_for_is_taken() -> None:
    assert choose_dtype("float16", SMALL, [capacity(0, 1)]) == "float16"


def test_weights_held_as_stored_are_computed_with_in_float32_only_where_a_person_says_so() -> None:
    parts = ((Quantisable(outputs=4, inputs=64, stored=INT8_GROUPED),),) * SMALL.layer_count
    packed = replace(SMALL, checkpoint_dtype="bfloat16", layer_quantisable=parts)
    for quantize in ("stored", "int8", "int4"):
        assert choose_dtype("auto", packed, [capacity(0, 1)], quantize) == "bfloat16"
        assert choose_dtype("float32", packed, [capacity(0, 1)], quantize) == "float32"
        assert choose_dtype("auto", SMALL, [capacity(0, 1)], quantize) == "float32"
    assert choose_dtype("auto", packed, [capacity(0, 1)], "none") == "float32"


def test_a_quantised_plan_pays_for_what_is_held_and_once_for_making_it():
    part = Quantisable(outputs=10, inputs=64)
    facts = model_facts((700, 700), quantisable=((part,), (part,)))
    for quantize, held in (("int8", 640 + 40), ("int4", 320 + 80)):
        chosen = replace(settings(dtype="bfloat16"), quantize=quantize)
        costs = price(facts, chosen, "bfloat16")
        assert costs.weights_bytes == (60 * 2 + held,) * 2
        assert costs.workspace_bytes == quantising_bytes([part], quantize, 700, "bfloat16", "bfloat16")
        assert costs.ends_bytes == price(facts, settings(), "bfloat16").ends_bytes
    assert price(facts, settings(), "bfloat16").weights_bytes == (1400, 1400)


def test_a_model_whose_facts_name_nothing_to_quantise_costs_the_same():
    facts = model_facts()
    assert price(facts, replace(settings(), quantize="int4"), "bfloat16") == price(facts, settings(), "bfloat16")
