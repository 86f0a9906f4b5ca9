from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.family_configs import WINDOW_TOKENS
from tests.helpers.family_matrix import make_family
from transport.messages import ModelRef
from transport.types import LayerRange
from vramancer_cli.engine import weights
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.sequence_cache import index_layer
from vramancer_cli.engine.trace import KvShape, trace_layers
from vramancer_cli.errors import ModelError

REF = ModelRef("m", "folder", "", "")


def test_each_layer_says_what_it_keeps(llama: Path):
    trace = trace_layers(open_checkpoint(llama))
    assert trace.kv_shapes == dict.fromkeys(range(8), KvShape(2, 8, 8))
    assert KvShape(2, 8, 6).elements == 28


def test_a_stage_keeps_what_its_own_layers_keep(llama: Path):
    assert set(trace_layers(open_checkpoint(llama)).kv_shapes_in(LayerRange(3, 5))) == {3, 4}


def test_layers_that_share_keys_and_values_keep_them_once_on_each_stage(tmp_path: Path):
    make_family(tmp_path, "gemma4_unified_text", 0)
    trace = trace_layers(open_checkpoint(tmp_path))
    assert dict(trace.same_as) == {4: 2, 5: 3, 6: 2, 7: 3}
    assert set(trace.kv_shapes_in(LayerRange(0, 8))) == {0, 1, 2, 3}
    assert trace.keepers_in(LayerRange(3, 8)) == {4: 4, 5: 3, 6: 4, 7: 3}
    assert trace.ragged


def test_keys_and_values_of_unequal_size_are_seen(tmp_path: Path):
    folder = make_checkpoint(
        tmp_path, "deepseek_v3", num_hidden_layers=2, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=12, first_k_dense_replace=2, num_key_value_heads=8,
    )  # fmt: skip
    assert trace_layers(open_checkpoint(folder)).kv_shapes[0] == KvShape(8, 16, 12)


def test_the_live_peak_lies_between_what_must_be_alive_and_the_sum_of_everything(llama: Path):
    hidden, inner = 64, 160
    live = trace_layers(open_checkpoint(llama)).live_elements
    assert hidden + 3 * inner <= live <= 12 * hidden + 4 * inner


def test_what_earlier_layers_made_is_not_alive_any_more(tmp_path: Path):
    few, many = (make_checkpoint(tmp_path / str(count), "llama", num_hidden_layers=count) for count in (2, 6))
    live = [trace_layers(open_checkpoint(folder)).live_elements for folder in (few, many)]
    assert live[0] == live[1]


def test_recurrent_state_is_measured_and_keeps_sequences_apart(tmp_path: Path):
    make_family(tmp_path, "qwen3_next", 0)
    trace = trace_layers(open_checkpoint(tmp_path))
    recurrent, convolved = 4 * 16 * 16, (2 * 2 * 16 + 4 * 16) * 4
    assert [trace.state_elements(layer) for layer in range(4)] == [recurrent + convolved, 0] * 2
    assert [trace.kv_elements(layer) for layer in range(4)] == [0, 2 * 2 * 16] * 2
    assert not trace.ragged


def test_the_keys_of_an_indexer_are_kept_in_blocks_too(tmp_path: Path):
    make_family(tmp_path, "deepseek_v32", 0)
    trace = trace_layers(open_checkpoint(tmp_path))
    assert trace.kv_shapes[index_layer(0)] == KvShape(1, 16, 0)
    assert not any(trace.state_elements(layer) for layer in range(4))
    assert not trace.ragged


def test_a_family_whose_layers_run_more_than_once_is_refused_with_the_way_out(tmp_path: Path):
    make_family(tmp_path, "hrm_text", 0)
    with pytest.raises(ModelError, match=r"'hrm_text' cannot be split") as refused:
        weights.model_facts(tmp_path, REF)
    assert "whole on one node" in refused.value.hint


@pytest.mark.parametrize(
    ("family", "elements"),
    [("gemma3_text", (64, 0) * 2), ("mistral", (64,) * 4), ("gemma3n_text", (64, 0) * 4), ("llama", None)],
)
def test_what_only_a_window_is_read_of_is_told_apart(tmp_path: Path, family: str, elements: tuple[int, ...] | None):
    make_family(tmp_path, family, 0)
    trace = trace_layers(open_checkpoint(tmp_path))
    assert trace.ragged
    assert trace.window_sizes == (() if elements is None else (WINDOW_TOKENS,))
    if elements is not None:
        parts = [trace.window_shapes(layer, WINDOW_TOKENS) for layer in range(len(elements))]
        assert tuple(sum(shape.elements for shape in part) for part in parts) == elements


def test_keys_that_another_layer_reads_to_the_first_are_kept_to_the_first(tmp_path: Path):
    make_family(tmp_path, "gemma3_text", 0)
    trace = trace_layers(open_checkpoint(tmp_path))
    assert [trace.looks_back(layer) for layer in range(4)] == [8, None, 8, None]
    read_by_all = replace(trace, same_as={1: 0})
    assert [read_by_all.looks_back(layer) for layer in range(3)] == [None, None, 8]
    by_longer = replace(trace, same_as={2: 0}, windows={0: 8, 2: 11})
    assert [by_longer.looks_back(layer) for layer in (0, 2)] == [11, 11]
    assert replace(trace, ragged=False).window_sizes == ()
