from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig

from tests.helpers import hostile_checkpoints as hostile
from tests.helpers.checkpoints import make_checkpoint, make_model
from tests.helpers.family_matrix import make_family
from transport.messages import ModelRef
from transport.types import LayerRange
from vramancer_cli.engine import architecture, weights
from vramancer_cli.engine.checkpoint import Checkpoint, StoredTensor, open_checkpoint
from vramancer_cli.engine.seam import Seams
from vramancer_cli.engine.trace import trace_layers
from vramancer_cli.errors import ModelError


def with_config(llama: Path, folder: Path, **changes: Any) -> Path:
    copy = Path(shutil.copytree(llama, folder))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | changes))
    return copy


def test_a_model_is_built_without_any_memory(llama: Path):
    model = architecture.build(open_checkpoint(llama), torch.bfloat16)
    assert all(parameter.is_meta and parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_container_of_the_layers_is_found(llama: Path, tmp_path: Path):
    assert architecture.container_name(architecture.build(open_checkpoint(llama), torch.float32)) == "layers"
    other = make_checkpoint(tmp_path, "gpt2", n_embd=32, n_layer=2, n_head=2)
    assert architecture.container_name(architecture.build(open_checkpoint(other), torch.float32)) == "h"


def test_what_has_weights_and_is_no_layer_is_outside(llama: Path, tmp_path: Path):
    model = architecture.build(open_checkpoint(llama), torch.float32)
    assert [name for name, _ in architecture.outside(model)] == ["embed_tokens", "norm"]
    make_family(tmp_path, "gemma3n_text", 0)
    names = {name for name, _ in architecture.outside(architecture.build(open_checkpoint(tmp_path), torch.float32))}
    assert {"embed_tokens_per_layer", "altup_projections.0", "altup_unembed_projections.2", "norm"} <= names


def seams(folder: Path) -> Seams:
    return trace_layers(open_checkpoint(folder)).seams


def test_what_a_shard_does_not_own_is_gone(llama: Path):
    model = architecture.build(open_checkpoint(llama), torch.float32)
    architecture.keep_layers(model, seams(llama), LayerRange(2, 4))
    layers = {architecture.layer_of(name, "model.layers.") for name in model.state_dict()}
    assert layers == {2, 3}
    assert len(architecture.layers_of(model)) == 8


def test_the_ends_are_everything_but_the_layers(llama: Path):
    model = architecture.build(open_checkpoint(llama), torch.float32)
    architecture.keep_ends(model, seams(llama))
    assert set(model.state_dict()) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_layer_numbers_are_read_off_names():
    assert architecture.layer_of("model.layers.12.mlp.weight", "model.layers.") == 12
    assert architecture.layer_of("model.norm.weight", "model.layers.") is None
    assert architecture.layer_of("other.model.layers.1.weight", "model.layers.") is None


def test_buffers_that_no_checkpoint_holds_are_computed(llama: Path):
    model = architecture.build(open_checkpoint(llama), torch.bfloat16)
    architecture.keep_layers(model, seams(llama), LayerRange(0, 1))
    architecture.fill_buffers(model, torch.device("cpu"))
    buffers, expected = dict(model.named_buffers()), dict(make_model().named_buffers())
    assert buffers.keys() == expected.keys() != set()
    assert all(torch.equal(buffers[name], expected[name]) for name in expected)


def test_a_family_whose_layers_are_no_list_is_refused(tmp_path: Path):
    make_family(tmp_path, "hrm_text", 0)
    model = architecture.build(open_checkpoint(tmp_path), torch.float32)
    with pytest.raises(ModelError, match=r"'hrm_text' cannot be split.*not one list"):
        architecture.container_name(model)


def test_a_family_is_refused_in_the_variant_that_cannot_be_split(tmp_path: Path):
    make_family(tmp_path, "doge", 0)
    architecture.build(open_checkpoint(tmp_path), torch.float32)
    with pytest.raises(ModelError, match="several tokens of a prompt together") as refused:
        architecture.read_config(open_checkpoint(with_config(tmp_path, tmp_path / "mixing", is_moe=True)))
    assert "whole on one node" in refused.value.hint


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model_type": "no-such-family"}, "no-such-family"),
        ({"model_type": None}, "which family"),
        ({"model_type": "vit"}, "No text model"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        ({"hidden_size": "wide"}, "does not accept this config"),
        ({"num_attention_heads": 0}, "does not accept|No text model"),
        ({"num_hidden_layers": 0}, "says 0 layers"),
        ({"num_hidden_layers": -1}, "says -1 layers"),
        ({"num_hidden_layers": 9_999}, "says 9999 layers"),
    ],
)
def test_configs_that_cannot_be_run_are_refused(llama: Path, tmp_path: Path, changes: dict[str, Any], why: str):
    folder = with_config(llama, tmp_path / "m", **changes)
    with pytest.raises(ModelError, match=why):
        architecture.build(open_checkpoint(folder), torch.float32)


def test_a_config_without_a_context_length_is_refused(llama: Path):
    assert architecture.context_tokens(architecture.read_config(open_checkpoint(llama))) == 256
    with pytest.raises(ModelError, match="how long"):
        architecture.context_tokens(PretrainedConfig())


@pytest.mark.parametrize("kind", hostile.LYING_CONFIGS)
def test_configs_that_lie_are_refused_before_anything_is_built_on_them(llama: Path, tmp_path: Path, kind: str):
    spoil, said = hostile.LYING_CONFIGS[kind]
    folder = Path(shutil.copytree(llama, tmp_path / "m"))
    spoil(folder)
    with pytest.raises(ModelError, match=said) as refused:
        weights.model_facts(folder, ModelRef("m", "folder", str(folder), ""))
    assert "\n" not in str(refused.value) and "\x1b" not in str(refused.value) and len(str(refused.value)) < 700


@pytest.mark.parametrize("kind", ["layers", "layers nested", "experts", "heads", "context", "theta 0"])
def test_the_worst_configs_do_not_even_reach_transformers(
    llama: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    """Some of its config classes make lists as long as the config says."""
    folder = Path(shutil.copytree(llama, tmp_path / "m"))
    hostile.LYING_CONFIGS[kind][0](folder)
    monkeypatch.setattr(architecture.AutoConfig, "from_pretrained", None)
    with pytest.raises(ModelError, match="no model"):
        architecture.read_config(open_checkpoint(folder))


@pytest.mark.parametrize("family", ["llama", "qwen2", "mixtral", "qwen2_moe", "gemma3_text", "gpt_oss", "qwen3_moe"])
def test_real_families_defaults_are_no_lies(tmp_path: Path, family: str):
    """The config of each family as its makers have it, with the tensors of a checkpoint of that size."""
    declared = AutoConfig.for_model(family).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(declared | {"model_type": family}))
    stored = [StoredTensor(str(n), tmp_path, torch.float32, (declared["vocab_size"], 1), 0, 0) for n in range(400)]
    checkpoint = Checkpoint(tmp_path, declared, {tensor.name: tensor for tensor in stored}, "")
    assert architecture.read_config(checkpoint).model_type == family


def test_tables_that_would_fill_the_memory_are_not_computed(llama: Path, monkeypatch: pytest.MonkeyPatch):
    model = architecture.build(open_checkpoint(llama), torch.float32)
    monkeypatch.setattr(architecture, "_MAX_TABLE_BYTES", 3)
    with pytest.raises(ModelError, match="tables"):
        architecture.fill_buffers(model, torch.device("cpu"))


def test_a_context_beyond_every_model_is_refused():
    with pytest.raises(ModelError, match="context of"):
        architecture.context_tokens(PretrainedConfig(max_position_embeddings=2**60))
