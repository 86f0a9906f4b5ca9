"""The same weights as a GGUF file, all matrices in one type, as llama.cpp's converter would write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open

from bench.table.model import ROPE_THETA, Shape, tokenizer

KINDS: Final = {"Q8_0": Kind.Q8_0, "Q4_0": Kind.Q4_0}


def gguf_file(shape: Shape, folder: Path, kind: str) -> Path:
    """`folder` is the checkpoint's; the file lies beside its weights. Embedding and output head are of `kind` too,
    norms float32."""
    path = folder / f"{shape.name}-{kind}.gguf"
    if not path.is_file():
        unfinished = path.with_suffix(".part")
        _write(shape, folder, KINDS[kind], unfinished)
        unfinished.rename(path)
    return path


def _write(shape: Shape, folder: Path, kind: Kind, path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    _add_config(writer, shape)
    _add_tokenizer(writer, shape.vocabulary)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.layers)
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  no mapping
                stored = names.get_name(name, try_suffixes=(".weight",))
                assert stored is not None, name
                _add_tensor(writer, stored, tensors.get_tensor(name), shape, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tensor(writer: gguf.GGUFWriter, name: str, weight: torch.Tensor, shape: Shape, kind: Kind) -> None:
    values = _interleaved(name, weight.float().numpy(), shape)
    if values.ndim < 2:
        writer.add_tensor(name, values)
    else:
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)


def _interleaved(name: str, values: np.ndarray, shape: Shape) -> np.ndarray:
    """llama.cpp rotates neighbours where transformers rotates halves: rows of queries and keys change places."""
    heads = shape.heads if ".attn_q." in name else shape.kv_heads if ".attn_k." in name else 0
    if not heads:
        return values
    return np.ascontiguousarray(values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape))


def _add_config(writer: gguf.GGUFWriter, shape: Shape) -> None:
    config = shape.config()
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.mlp)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_vocab_size(shape.vocabulary)


def _add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    made = tokenizer(vocabulary)
    state = json.loads(made.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(state["vocab"], key=state["vocab"].__getitem__))
    writer.add_token_types([gguf.TokenType.NORMAL] * vocabulary)
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
