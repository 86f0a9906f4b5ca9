from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.checkpoints import make_checkpoint
from transport.messages import ModelRef
from transport.types import LayerRange
from vramancer_cli.engine import weights
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.trace import KvShape, LiveElements, trace_layers
from vramancer_cli.errors import ModelError

REF = ModelRef("m", "folder", "", "")


def test_each_layer_says_what_it_keeps(llama: Path):
    trace = trace_layers(open_checkpoint(llama))
    assert trace.kv_shapes == dict.fromkeys(range(8), KvShape(2, 8, 8))
    assert KvShape(2, 8, 6).elements == 28


def test_only_the_layers_asked_for_are_run(llama: Path):
    assert set(trace_layers(open_checkpoint(llama), LayerRange(3, 5)).kv_shapes) == {3, 4}


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


def test_freed_tensors_and_views_are_not_counted():
    with LiveElements() as live:
        first = torch.empty(10, device="meta")
        view = first[:5]
        del first
        kept = torch.empty(20, device="meta")
        del view
        last = torch.empty(5, device="meta")
    assert live.peak_elements == 30
    assert kept.shape[0] + last.shape[0] == 25


def test_a_family_that_changes_hidden_states_between_layers_is_refused(tmp_path: Path):
    folder = make_checkpoint(tmp_path, "granite", num_hidden_layers=2, embedding_multiplier=3.0)
    with pytest.raises(ModelError, match="between its layers"):
        weights.model_facts(folder, REF)


def test_a_layer_without_attention_is_refused(tmp_path: Path):
    folder = make_checkpoint(
        tmp_path, "qwen3_next", num_hidden_layers=4, head_dim=16, num_experts=2, num_experts_per_tok=1,
        moe_intermediate_size=16, shared_expert_intermediate_size=16, linear_num_value_heads=2, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8,
    )  # fmt: skip
    with pytest.raises(ModelError, match="Layer 0 has no attention"):
        weights.model_facts(folder, REF)
