from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig

from tests.helpers.checkpoints import make_checkpoint, make_model
from transport.types import LayerRange
from vramancer_cli.engine import architecture
from vramancer_cli.engine.checkpoint import open_checkpoint
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


def test_the_parts_come_from_the_pipeline_plan(llama: Path, tmp_path: Path):
    parts = architecture.parts_of(architecture.build(open_checkpoint(llama), torch.float32))
    assert parts == architecture.Parts(("embed_tokens",), "layers", ("norm",))
    other = make_checkpoint(tmp_path, "gpt_neox", num_hidden_layers=1)
    parts = architecture.parts_of(architecture.build(open_checkpoint(other), torch.float32))
    assert parts == architecture.Parts(("embed_in", "emb_dropout"), "layers", ("final_layer_norm",))


def test_what_a_shard_does_not_own_is_gone(llama: Path):
    model = architecture.build(open_checkpoint(llama), torch.float32)
    architecture.keep(model, LayerRange(2, 4), ends=False)
    layers = {architecture.layer_of(name, "model.layers.") for name in model.state_dict()}
    assert layers == {2, 3}
    assert len(architecture.layers_of(model)) == 8


def test_the_ends_are_everything_but_the_layers(llama: Path):
    model = architecture.build(open_checkpoint(llama), torch.float32)
    architecture.keep(model, LayerRange(0, 0), ends=True)
    assert set(model.state_dict()) == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def test_layer_numbers_are_read_off_names():
    assert architecture.layer_of("model.layers.12.mlp.weight", "model.layers.") == 12
    assert architecture.layer_of("model.norm.weight", "model.layers.") is None
    assert architecture.layer_of("other.model.layers.1.weight", "model.layers.") is None


def test_buffers_that_no_checkpoint_holds_are_computed(llama: Path):
    model = architecture.build(open_checkpoint(llama), torch.bfloat16)
    architecture.keep(model, LayerRange(0, 0), ends=False)
    architecture.fill_buffers(model, torch.device("cpu"))
    buffers, expected = dict(model.named_buffers()), dict(make_model().named_buffers())
    assert buffers.keys() == expected.keys() != set()
    assert all(torch.equal(buffers[name], expected[name]) for name in expected)


def test_a_family_without_a_pipeline_plan_is_refused(tmp_path: Path):
    folder = make_checkpoint(tmp_path, "gpt2", n_embd=32, n_layer=2, n_head=2)
    model = architecture.build(open_checkpoint(folder), torch.float32)
    with pytest.raises(ModelError, match=r"'gpt2'.*no pipeline plan"):
        architecture.parts_of(model)


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
        ({"num_hidden_layers": 10**9}, "says 1000000000 layers"),
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
