"""GGUF files made on the spot with the format's own writer: random weights, quantised, and the model that they hold.

Tensors are named and laid out as llama.cpp's converter does it: the way there, of which the program has the way back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import PreTrainedModel

from tests.helpers.checkpoints import make_model, make_tokenizer

_ARCHITECTURES: Final = {"gemma3_text": "gemma3"}
_PLAIN: Final = (Kind.F32, Kind.F16, Kind.BF16)
_SCALES_AT: Final = {Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2), Kind.Q6_K: (208,), Kind.Q3_K: (108,), Kind.Q2_K: (80, 82)}
"""Where the float16 scales stand in the blocks that the writer cannot make: those are random but for their scales."""


def write_gguf(
    path: Path, kind: Kind = Kind.Q8_0, family: str = "llama", *, seed: int = 0, metadata: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None, tensors_per_file: int = 0, **overrides: Any,
) -> PreTrainedModel:  # fmt: skip
    """Write a small model of `family`, its matrices as `kind`; gives the model with the weights that the file holds.

    `tensors_per_file`: several files, the first of them with metadata only; named as the writer does it.
    """
    model = make_model(family, seed=seed, **overrides)
    architecture = _ARCHITECTURES.get(family, family)
    first = tensors_per_file > 0
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_per_file, small_first_shard=first)
    _add_config(writer, model.config)
    _add_tokenizer(writer, model.config.vocab_size)
    for key, value in (metadata or {}).items():
        writer.kv_data[0].pop(key, None)
        if value is not None:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    _add_tensors(writer, model, architecture, kind, np.random.default_rng(seed))
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _add_config(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    writer.add_key_length(head_dim)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if config.model_type.startswith("gemma"):
        writer.add_sliding_window(config.sliding_window)


def _add_tokenizer(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    fast = make_tokenizer(vocab_size)
    parts = json.loads(fast.backend_tokenizer.to_str())["model"]
    words = {number: word for word, number in fast.get_vocab().items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    special = set(fast.all_special_ids)
    writer.add_token_list([words.get(number, f"<unused{number}>") for number in range(vocab_size)])
    writer.add_token_types([3 if number in special else 1 for number in range(vocab_size)])
    writer.add_token_merges([" ".join(pair) for pair in parts["merges"]])
    if fast.eos_token_id is not None:
        writer.add_eos_token_id(fast.eos_token_id)
    if fast.chat_template is not None:
        writer.add_chat_template(fast.chat_template)


def _add_tensors(
    writer: gguf.GGUFWriter, model: PreTrainedModel, architecture: str, kind: Kind, random: np.random.Generator
) -> None:
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        values = weight.numpy()
        if values.ndim < 2:
            offset = 1 if architecture.startswith("gemma") else 0
            writer.add_tensor(stored, _laid_out(stored, values + np.float32(offset), architecture, model.config))
            continue
        blocks = _blocks(_laid_out(stored, values, architecture, model.config), kind, random)
        writer.add_tensor(stored, blocks, raw_dtype=kind)
        held = gguf.dequantize(blocks, kind).reshape(values.shape)
        weight.copy_(torch.from_numpy(_back(stored, held, architecture, model.config)))


def _blocks(values: np.ndarray, kind: Kind, random: np.random.Generator) -> np.ndarray:
    if kind not in _SCALES_AT:
        return gguf.quantize(values, kind)
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (values.size // block_elements, block_bytes), dtype=np.uint8)
    for at in _SCALES_AT[kind]:
        scales = random.uniform(0.001, 0.002, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(values.shape[0], -1)


def _laid_out(name: str, values: np.ndarray, architecture: str, config: Any) -> np.ndarray:
    """Rotary halves interleaved, as llama.cpp wants them of its first family."""
    heads = _rotary_heads(name, architecture, config)
    if not heads:
        return values
    return np.ascontiguousarray(values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape))


def _back(name: str, values: np.ndarray, architecture: str, config: Any) -> np.ndarray:
    heads = _rotary_heads(name, architecture, config)
    if not heads:
        return values
    return np.ascontiguousarray(values.reshape(heads, -1, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape))


def _rotary_heads(name: str, architecture: str, config: Any) -> int:
    if architecture != "llama":
        return 0
    return config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads if ".attn_k." in name else 0
