"""Models read from GGUF files: the same text as transformers' model with the file's weights, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from tests.helpers.checkpoints import make_model, make_tokenizer
from tests.helpers.gguf_files import write_gguf
from tests.helpers.gguf_scene import MARGIN, PROMPT, TINY, WIDE, answered, second_roundings
from tests.helpers.greedy import greedy
from tests.helpers.stepping import make_plan
from tests.helpers.weight_scene import WeightScene
from vramancer_cli.engine import weights
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.gguf_folder import unfold
from vramancer_cli.engine.quant import quantise
from vramancer_cli.engine.ranges import layer_ranges
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.errors import ModelError
from vramancer_cli.runtime.weight_fetch import fetch_heads, fetch_ranges

GEMMA = {"head_dim": 256, "num_attention_heads": 2, "sliding_window": 16}


def check_same_text(engine: TorchEngine, path: Path, model: PreTrainedModel) -> None:
    text, margin = greedy(model, PROMPT, 12)
    assert margin > MARGIN
    assert answered(engine, unfold(path, path.parent / "shelf")) == text


@pytest.mark.parametrize(
    "kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1], ids=lambda k: k.name
)
def test_every_type_gives_the_text_of_the_dequantised_model(tmp_path: Path, engine: TorchEngine, kind: Kind):
    path = tmp_path / "model.gguf"
    check_same_text(engine, path, write_gguf(path, kind, **TINY))


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K], ids=lambda kind: kind.name)
def test_k_quants_give_the_text_of_the_dequantised_model(tmp_path: Path, engine: TorchEngine, kind: Kind):
    path = tmp_path / "model.gguf"
    check_same_text(engine, path, write_gguf(path, kind, **WIDE))


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("qwen2", {"num_hidden_layers": 3}),
        ("qwen3", {"head_dim": 16, "num_hidden_layers": 3}),
        ("gemma2", {**GEMMA, "num_hidden_layers": 4}),
        ("gemma3_text", {**GEMMA, "num_hidden_layers": 7}),
    ],
)
def test_every_architecture_gives_the_text_of_its_family(
    tmp_path: Path, engine: TorchEngine, family: str, sizes: dict[str, Any]
):
    path = tmp_path / "model.gguf"
    model = write_gguf(path, Kind.Q8_0, family, **sizes)
    check_same_text(engine, path, model)
    stored = open_checkpoint(unfold(path, tmp_path / "shelf")).tensors
    theirs = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    assert stored.keys() == theirs.keys()
    for name, values in theirs.items():
        assert torch.equal(stored[name].read_as(torch.float32).read().float(), values), name


def test_positions_stretched_as_llama_3_does_are_read_off_the_factors(tmp_path: Path, engine: TorchEngine):
    rope = {
        "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    sizes = {**TINY, "head_dim": 64, "max_position_embeddings": 16_384, "rope_parameters": rope}
    stretched = make_model("llama", **sizes).model.rotary_emb.inv_freq
    factors = (10_000.0 ** -(torch.arange(0, 64, 2) / 64) / stretched).numpy().astype(np.float32)
    assert factors.max() == pytest.approx(8) and factors.min() == pytest.approx(1)
    path = tmp_path / "model.gguf"
    model = write_gguf(path, Kind.Q8_0, extra={"rope_freqs.weight": factors}, **sizes)
    folder = unfold(path, tmp_path / "shelf")
    read = AutoConfig.from_pretrained(folder).rope_parameters
    assert {name: read[name] for name in rope} == pytest.approx(rope)
    text, margin = greedy(model, PROMPT, 12)
    assert margin > MARGIN
    assert answered(engine, folder, block_count=1100) == text


def test_weights_are_requantised_as_asked_and_the_error_is_logged(
    tmp_path: Path, engine: TorchEngine, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "vramancer.engine")
    path = tmp_path / "model.gguf"
    model = write_gguf(path, Kind.Q8_0, **WIDE)
    folder = unfold(path, tmp_path / "shelf")
    plain, held = (make_plan(engine, folder, 1, quantize=choice).stages[0].weights_bytes for choice in ("none", "int4"))
    assert held < plain / 5
    assert len(answered(engine, folder, quantize="int4")) == 12
    said = second_roundings(caplog)
    assert [(entry["stored"], entry["held"]) for entry in said] == [(["Q8_0"], "int4")] * 2  # one for each stage
    named = {
        f"1.{name}": linear.weight.detach()
        for name, linear in model.get_submodule("model.layers.1").named_modules()
        if isinstance(linear, torch.nn.Linear)
    }
    errors = {name: float((rounded(weight) - weight).norm() / weight.norm()) for name, weight in named.items()}
    worst = max(errors, key=errors.__getitem__)
    assert (said[1]["worst_weight"], said[1]["worst_error"]) == (worst, f"{errors[worst]:.2%}")
    assert said[1]["mean_error"] == f"{sum(errors.values()) / len(errors):.2%}"
    assert 0.05 < errors[worst] < 0.12


def rounded(weight: torch.Tensor) -> torch.Tensor:
    return quantise(weight, "int4").dequantise(slice(None), torch.float32)


def test_what_is_stored_as_plain_numbers_is_rounded_once(
    llama: Path, engine: TorchEngine, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", "vramancer.engine")
    answered(engine, llama, quantize="int4")
    assert caplog.records and not second_roundings(caplog)


def test_text_goes_in_and_comes_out_as_with_the_tokenizer_that_the_file_was_made_of(tmp_path: Path):
    path = tmp_path / "model.gguf"
    write_gguf(path, metadata={"tokenizer.ggml.eot_token_id": 7, "tokenizer.ggml.eom_token_id": [7]}, **TINY)
    folder = unfold(path, tmp_path / "shelf")
    original, read = make_tokenizer(), AutoTokenizer.from_pretrained(folder)
    for text in ("several machines", "  zwei  Wörter\n", "<|start|>user<|end|>", "12 ½ 日本"):
        assert read.encode(text) == original.encode(text)
        assert read.decode(read.encode(text)) == text
    assert (read.eos_token, read.chat_template) == (original.eos_token, original.chat_template)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [original.eos_token_id, 7]


def tokens_of(folder: Path, file: Path, text: str) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(unfold(file, folder))
    return tokenizer.convert_ids_to_tokens(tokenizer.encode(text))


@pytest.mark.parametrize(
    ("metadata", "begins", "ends"),
    [
        ({}, False, False),
        ({"tokenizer.ggml.add_bos_token": True}, True, False),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}, True, True),
        ({"tokenizer.ggml.pre": "llama-bpe"}, True, False),
        ({"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}, False, False),
    ],
)
def test_texts_begin_and_end_as_the_file_says(tmp_path: Path, metadata: dict[str, Any], begins: bool, ends: bool):
    path = tmp_path / "model.gguf"
    write_gguf(path, metadata={"tokenizer.ggml.bos_token_id": 0, **metadata}, **TINY)
    tokens = tokens_of(tmp_path / "shelf", path, "several machines")
    assert (tokens[0] == "<|start|>", tokens[-1] == "<|end|>") == (begins, ends)


def test_a_word_that_is_a_token_needs_no_merges_where_the_vocabulary_works_so(tmp_path: Path):
    path, without = tmp_path / "model.gguf", {"tokenizer.ggml.merges": ["a n"], "tokenizer.ggml.bos_token_id": 0}
    write_gguf(path, metadata={**without, "tokenizer.ggml.pre": "llama-bpe"}, **TINY)
    assert tokens_of(tmp_path / "shelf", path, "several machines") == ["<|start|>", "several", "Ġmachines"]
    write_gguf(path, metadata=without, **TINY)
    assert tokens_of(tmp_path / "shelf", path, "several") == list("several")


def test_a_sentencepiece_vocabulary_begins_with_its_start_and_falls_back_to_bytes(tmp_path: Path):
    path = tmp_path / "model.gguf"
    pieces = ["▁", "h", "e", "l", "o", "▁h", "ll", "▁he", "llo", "▁hello"]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    words += [f"<unused{number}>" for number in range(384 - len(words))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (384 - 259)
    vocabulary = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": words, "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(384 - 259)],
        "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.merges": None, "tokenizer.ggml.pre": None,
    }  # fmt: skip
    write_gguf(path, metadata=vocabulary, **TINY)
    tokens = tokens_of(tmp_path / "shelf", path, "hello hé")
    assert tokens == ["<s>", "▁hello", "▁h", "<0xC3>", "<0xA9>"]


def test_what_was_made_once_is_kept_and_a_changed_file_is_another_model(tmp_path: Path):
    path = tmp_path / "model.gguf"
    write_gguf(path, **TINY)
    first = unfold(path, tmp_path / "shelf")
    made = (first / "config.json").stat()
    assert unfold(path, tmp_path / "shelf") == first
    assert (first / "config.json").stat().st_mtime_ns == made.st_mtime_ns
    assert first.name == "model"
    digest = weights.digest(first)
    write_gguf(path, num_hidden_layers=3)
    second = unfold(path, tmp_path / "shelf")
    assert second != first and weights.digest(second) != digest
    with pytest.raises(ModelError, match="not the file any more"):
        open_checkpoint(first)
    path.unlink()
    with pytest.raises(ModelError, match="any more"):
        open_checkpoint(second)


def test_a_worker_gets_its_layers_out_of_the_file(tmp_path: Path, engine: TorchEngine):
    path = tmp_path / "model.gguf"
    write_gguf(path, Kind.Q4_0, num_hidden_layers=6)
    scene = WeightScene(tmp_path, unfold(path, tmp_path / "gguf"))
    plan = make_plan(engine, scene.model, 3)
    copy, link = scene.copy(), scene.link()
    fetch_heads(link, copy, scene.ref)
    head_bytes, ranges = link.moved_bytes, layer_ranges(copy.folder, plan, plan.stages[1].layers)
    fetch_ranges(link, copy, ranges, lambda _there, _moved: None)
    copied, original = open_checkpoint(copy.folder), open_checkpoint(scene.model)
    assert copied.digest == original.digest
    assert link.moved_bytes - head_bytes == sum(part.size_bytes for part in ranges) < path.stat().st_size / 2
    for name, tensor in original.tensors.items():
        here = "layers.2." in name or "layers.3." in name
        assert copied.tensors[name].same_bytes(tensor) == here, name


@pytest.mark.parametrize(
    ("sentence", "arguments"),
    [
        ("one of several files", {"metadata": {"split.count": 3}}),
        ("stretches positions by 'yarn'", {"metadata": {"llama.rope.scaling.type": "yarn"}}),
        ("no single number for 'vocab_size'", {"metadata": {"llama.vocab_size": [3, 4]}}),
        ("no single number for 'num_key_value_heads'", {"metadata": {"llama.attention.head_count_kv": [2, 2]}}),
        (
            "stretches positions in a way",
            {"family": "qwen2", "extra": {"rope_freqs.weight": np.linspace(1, 3, 4, dtype=np.float32)}},
        ),
        ("has no place", {"extra": {"blk.0.ffn_gate_inp.weight": np.zeros((4, 64), np.float32)}}),
        ("stretches positions in a way", {"extra": {"rope_freqs.weight": np.linspace(1, 3, 4, dtype=np.float32)}}),
        ("scales its attention", {"family": "gemma2", "head_dim": 128, "num_attention_heads": 2, "sliding_window": 16}),
    ],
)
def test_what_would_be_answered_wrongly_is_refused(tmp_path: Path, sentence: str, arguments: dict[str, Any]):
    path = tmp_path / "model.gguf"
    write_gguf(path, **{**TINY, **arguments})
    with pytest.raises(ModelError, match=sentence):
        unfold(path, tmp_path / "shelf")
    assert not any((tmp_path / "shelf").glob("*/*"))


def test_an_unknown_architecture_is_refused_by_its_name(tmp_path: Path):
    path = tmp_path / "model.gguf"
    write_gguf(path, family="phi3", pad_token_id=0, **TINY)
    with pytest.raises(ModelError, match="architecture 'phi3'"):
        unfold(path, tmp_path / "shelf")


def test_shapes_that_contradict_the_metadata_are_refused(tmp_path: Path):
    path = tmp_path / "model.gguf"
    write_gguf(path, **TINY)
    data = path.read_bytes()
    wrong = data.replace(
        b"llama.feed_forward_length\x04\0\0\0\xa0\0\0\0", b"llama.feed_forward_length\x04\0\0\0\xc0\0\0\0"
    )
    assert wrong != data
    path.write_bytes(wrong)
    with pytest.raises(ModelError, match="does not have the shape"):
        weights.model_facts(folder := unfold(path, tmp_path / "shelf"), WeightScene(tmp_path, folder).ref)


@pytest.mark.parametrize("key", ["context_length", "block_count", "embedding_length"])
def test_metadata_that_lacks_a_size_is_refused(tmp_path: Path, key: str):
    path = tmp_path / "model.gguf"
    write_gguf(path, **TINY)
    path.write_bytes(path.read_bytes().replace(f"llama.{key}".encode(), f"llama.{key[:-1]}_".encode()))
    with pytest.raises(ModelError, match=f"lacks 'llama.{key}'"):
        unfold(path, tmp_path / "shelf")


def test_a_tokenizer_that_makes_no_sense_is_refused(tmp_path: Path):
    path = tmp_path / "model.gguf"
    write_gguf(path, **TINY)
    path.write_bytes(path.read_bytes().replace(b"\x04\0\0\0\0\0\0\0gpt2", b"\x04\0\0\0\0\0\0\0nope"))
    with pytest.raises(ModelError, match=r"tokenizer in model\.gguf cannot be read"):
        unfold(path, tmp_path / "shelf")


def test_a_gguf_file_inside_a_folder_is_no_model(tmp_path: Path, llama: Path):
    write_gguf(tmp_path / "model.safetensors", **TINY)
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    with pytest.raises(ModelError) as caught:
        open_checkpoint(tmp_path)
    assert ".gguf file itself" in caught.value.hint


def test_a_strangers_pointer_opens_no_file_that_he_does_not_know(tmp_path: Path):
    path = tmp_path / "mine.gguf"
    write_gguf(path, **TINY)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "gguf.json").write_text(json.dumps({"files": [{"path": str(path), "head_sha256": "0" * 64}]}))
    with pytest.raises(ModelError, match="not the file any more"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("files", [None, [], [{"path": 3}], {"path": "x"}, [{"path": "x"}], ["x"]])
def test_a_pointer_that_points_nowhere_is_refused(tmp_path: Path, files: Any):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "gguf.json").write_text(json.dumps({"files": files}))
    with pytest.raises(ModelError, match="does not say where"):
        open_checkpoint(tmp_path)


def test_there_has_to_be_a_file(tmp_path: Path):
    with pytest.raises(ModelError, match="There is no file"):
        unfold(tmp_path / "none.gguf", tmp_path)
