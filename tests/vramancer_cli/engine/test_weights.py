from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.stepping import no_progress
from transport.messages import ModelRef
from transport.types import LayerRange, WeightFormat
from vramancer_cli.engine import architecture, weights
from vramancer_cli.engine.checkpoint import StoredTensor, open_checkpoint
from vramancer_cli.engine.trace import trace_layers
from vramancer_cli.errors import ModelError

CPU = torch.device("cpu")
REF = ModelRef("m", "folder", "", "")


def cut(folder: Path, layers: LayerRange, *, ends: bool = False, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    checkpoint = open_checkpoint(folder)
    model, seams = architecture.build(checkpoint, dtype), trace_layers(checkpoint).seams
    if ends:
        architecture.keep_ends(model, seams)
    else:
        architecture.keep_layers(model, seams, layers)
    return model


def load(folder: Path, layers: LayerRange, *, ends: bool = False, dtype: torch.dtype = torch.float32):
    model = cut(folder, layers, ends=ends, dtype=dtype)
    weights.load_into(model, open_checkpoint(folder), CPU, no_progress)
    return model


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    stored = load_file(folder / "model.safetensors")
    change(stored)
    save_file(stored, folder / "model.safetensors")
    return folder


def test_the_facts_are_those_of_the_whole_model(llama: Path):
    facts = weights.model_facts(llama, REF)
    whole = AutoModelForCausalLM.from_pretrained(llama)
    per_layer = sum(parameter.numel() for parameter in whole.model.layers[0].parameters())
    assert facts.layer_parameters == (per_layer,) * 8
    assert sum(facts.layer_parameters) + facts.ends_parameters == sum(p.numel() for p in whole.parameters())
    assert (facts.family, facts.hidden_size, facts.vocab_size, facts.context_tokens) == ("llama", 64, 384, 256)
    assert facts.kv_elements_per_token == (2 * 2 * 8,) * 8
    assert (facts.ref, facts.checkpoint_dtype) == (REF, "float32")


def test_tied_weights_are_counted_once(tied_llama: Path, llama: Path):
    tied, untied = weights.model_facts(tied_llama, REF), weights.model_facts(llama, REF)
    assert untied.ends_parameters - tied.ends_parameters == 384 * 64


def test_the_checkpoint_dtype_is_what_most_bytes_are(tmp_path: Path):
    folder = make_checkpoint(tmp_path, dtype=torch.bfloat16, num_hidden_layers=1)
    rewrite(folder, lambda stored: stored.update({"model.norm.weight": stored["model.norm.weight"].float()}))
    assert weights.model_facts(folder, REF).checkpoint_dtype == "bfloat16"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_shard_has_the_checkpoints_weights_in_the_wanted_dtype(llama: Path, dtype: torch.dtype):
    model = load(llama, LayerRange(2, 5), dtype=dtype)
    stored = load_file(llama / "model.safetensors")
    state = model.state_dict()
    assert {architecture.layer_of(name, "model.layers.") for name in state} == {2, 3, 4}
    assert all(torch.equal(tensor, stored[name].to(dtype)) for name, tensor in state.items())
    assert sum(tensor.nbytes for tensor in state.values()) == weights.weights_bytes(model)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_tied_ends_share_one_tensor(tied_llama: Path):
    model = load(tied_llama, LayerRange(0, 0), ends=True)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert weights.weights_bytes(model) == (384 * 64 + 64) * 4


def test_weights_that_transformers_fuses_on_load_are_fused(tmp_path: Path):
    sizes = {"num_hidden_layers": 2, "num_local_experts": 4, "num_experts_per_tok": 2}
    folder = make_checkpoint(tmp_path, "mixtral", **sizes)
    whole = AutoModelForCausalLM.from_pretrained(folder)
    state = load(folder, LayerRange(1, 2)).state_dict()
    assert any("gate_up_proj" in name for name in state)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in state.items())


def test_only_owned_tensors_are_read(llama: Path, monkeypatch: pytest.MonkeyPatch):
    names: list[str] = []
    read = StoredTensor.read
    monkeypatch.setattr(StoredTensor, "read", lambda self: names.append(self.name) or read(self))
    load(llama, LayerRange(3, 5))
    assert {architecture.layer_of(name, "model.layers.") for name in names} == {3, 4}
    assert len(names) == len(set(names)) == 2 * 9


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_the_kernel_counts_no_more_bytes_than_the_owned_tensors_have(tmp_path: Path):
    """Every byte that the process reads is counted in `rchar`, unless a file is mapped: so it must not be mapped."""
    folder = make_checkpoint(tmp_path, hidden_size=256, intermediate_size=1024, num_attention_heads=8)
    model, checkpoint = cut(folder, LayerRange(3, 5)), open_checkpoint(folder)
    load(folder, LayerRange(3, 5))  # whatever is imported late is imported now
    maps: list[str] = []
    before = read_bytes()
    weights.load_into(model, checkpoint, CPU, lambda *_: maps.append(Path("/proc/self/maps").read_text()))
    delta = read_bytes() - before - sum(map(len, maps))
    assert weights.weights_bytes(model) <= delta < weights.weights_bytes(model) + 100_000
    assert (folder / "model.safetensors").stat().st_size > 3 * delta
    assert len(maps) > 3
    assert not any("model.safetensors" in text for text in maps)


def read_bytes() -> int:
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"])


def test_files_of_other_layers_need_not_hold_anything_right(tmp_path: Path):
    folder = make_checkpoint(tmp_path, shard_size="200KB")
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(weight_map.values())) > 3
    mine = {file for name, file in weight_map.items() if name.startswith("model.layers.7.")}
    whole = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for file in set(weight_map.values()) - mine:
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: 8 + int.from_bytes(data[:8], "little")].ljust(len(data), b"\xff"))
    state = load(folder, LayerRange(7, 8)).state_dict()
    assert all(torch.equal(tensor, whole[name]) for name, tensor in state.items())


@pytest.mark.parametrize("quantize", ["none", "int8"])
def test_progress_counts_the_stored_bytes_tensor_by_tensor(llama: Path, quantize: WeightFormat):
    seen: list[tuple[int, int]] = []
    model = cut(llama, LayerRange(0, 3))
    weights.load_into(model, open_checkpoint(llama), CPU, lambda *counts: seen.append(counts), quantize)
    total = 3 * 41088 * 4
    assert (seen[0], seen[-1]) == ((0, total), (total, total))
    steps = [after - before for (before, _), (after, _) in pairwise(seen)]
    assert all(step > 0 for step in steps)
    norms = 64 * 4
    matrices = {count * 4 for count in (64 * 64, 16 * 64, 160 * 64)}
    *told, last = steps  # threads read them in any order: the last of all may have been norms
    assert all(step - step % 4096 in matrices for step in told), "one matrix, and norms beside it"
    assert last - last % 4096 in matrices | {0}
    assert all(step % 4096 in (0, norms, 2 * norms) for step in steps)


@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_every_dtype_becomes_every_other_in_one_rounding(tmp_path: Path, stored: torch.dtype, wanted: torch.dtype):
    """Also where transformers fuses tensors, and where the file mixes dtypes."""
    sizes = {"num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    folder = make_checkpoint(tmp_path, "mixtral", dtype=stored, **sizes)
    odd = "model.layers.0.input_layernorm.weight"
    rewrite(folder, lambda tensors: tensors.update({odd: tensors[odd].double().mul(1 + 2**-20).float()}))
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    state = load(folder, LayerRange(0, 1), dtype=wanted).state_dict()
    assert any("gate_up_proj" in name for name in state)
    assert all(torch.equal(tensor, exact[name].to(wanted)) for name, tensor in state.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_ends_are_read_once_and_answer_as_transformers_does(tied_llama: Path, dtype: torch.dtype):
    seen: list[tuple[int, int]] = []
    model = cut(tied_llama, LayerRange(0, 0), ends=True, dtype=dtype)
    weights.load_into(model, open_checkpoint(tied_llama), CPU, lambda *counts: seen.append(counts))
    assert seen[-1] == ((384 * 64 + 64) * 4,) * 2
    whole = AutoModelForCausalLM.from_pretrained(tied_llama, dtype=dtype)
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.inference_mode():
        assert torch.equal(model.get_output_embeddings()(hidden), whole.get_output_embeddings()(hidden))
        assert torch.equal(model.get_input_embeddings()(torch.arange(9)), whole.get_input_embeddings()(torch.arange(9)))


def test_a_checkpoint_that_stores_the_other_of_two_tied_weights_is_read_too(tied_llama: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tied_llama, tmp_path / "m"))
    stored = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors.pop("model.embed_tokens.weight")}))
    model = load(folder, LayerRange(0, 0), ends=True)
    assert torch.equal(model.get_input_embeddings().weight, stored)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_missing_weight_is_named_before_anything_is_loaded(llama: Path, tmp_path: Path):
    folder = Path(shutil.copytree(llama, tmp_path / "m"))
    rewrite(folder, lambda stored: stored.__delitem__("model.layers.3.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks the weight 'model\.layers\.3\.mlp\.up_proj\.weight'"):
        weights.model_facts(folder, REF)
    load(folder, LayerRange(0, 3))


def test_a_missing_part_of_a_fused_weight_is_noticed(tmp_path: Path):
    sizes = {"num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    folder = make_checkpoint(tmp_path, "mixtral", **sizes)
    rewrite(folder, lambda stored: [stored.pop(name) for name in list(stored) if "experts.2" in name and "w2" in name])
    with pytest.raises(ModelError, match="experts"):
        load(folder, LayerRange(0, 1))


def test_a_weight_of_another_shape_is_refused(llama: Path, tmp_path: Path):
    folder = Path(shutil.copytree(llama, tmp_path / "m"))
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(folder, lambda stored: stored.update({name: stored[name][:-1].contiguous()}))
    with pytest.raises(ModelError, match="shape"):
        load(folder, LayerRange(0, 2))


@pytest.mark.parametrize("changes", [{"vocab_size": 1000}, {"hidden_size": 2**40}, {"intermediate_size": 2**40}])
def test_a_config_that_lies_about_sizes_is_refused_before_anything_is_allocated(
    llama: Path, tmp_path: Path, changes: dict[str, int]
):
    folder = Path(shutil.copytree(llama, tmp_path / "m"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ModelError, match="shape"):
        weights.model_facts(folder, REF)


def test_two_copies_of_tied_weights_are_one_unless_they_differ(tied_llama: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tied_llama, tmp_path / "m"))
    rewrite(folder, lambda stored: stored.update({"lm_head.weight": stored["model.embed_tokens.weight"].clone()}))
    model = load(folder, LayerRange(0, 0), ends=True)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    rewrite(folder, lambda stored: stored["lm_head.weight"].add_(1))
    with pytest.raises(ModelError, match="two different weights"):
        load(folder, LayerRange(0, 0), ends=True)


def test_weights_stored_in_an_odd_dtype_are_refused(llama: Path, tmp_path: Path):
    folder = Path(shutil.copytree(llama, tmp_path / "m"))
    rewrite(folder, lambda stored: stored.update({name: tensor.double() for name, tensor in stored.items()}))
    with pytest.raises(ModelError, match="float64"):
        weights.model_facts(folder, REF)
