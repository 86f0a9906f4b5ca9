"""Packed weights against another implementation of the same formats: transformers', in torch."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers.integrations.gguf import dequant

from vramancer_cli.engine.gguf_file import read_head
from vramancer_cli.engine.gguf_tensor import PACKED, PLAIN, GgufTensor, tensors_in
from vramancer_cli.errors import ModelError

ROWS, WIDTH = 5, 512
FIVE_BITS = {Kind.Q5_0, Kind.Q5_1}
"""Which transformers does not know."""


def one_tensor(path: Path, blocks: np.ndarray, kind: Kind) -> GgufTensor:
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tensor("given", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tensor,) = tensors_in(read_head(path), {}, {"given": "taken"})
    return tensor


def random_blocks(kind: Kind) -> np.ndarray:
    """Any bytes are blocks; those whose float16 scales are not finite are left out."""
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    drawn = np.random.default_rng(kind.value).integers(0, 256, (4000, block_bytes), dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(gguf.dequantize(drawn, kind)).all(1)
    count = ROWS * WIDTH // block_elements
    return drawn[finite][:count].reshape(ROWS, -1)


@pytest.mark.parametrize("kind", sorted(PACKED - FIVE_BITS), ids=lambda kind: kind.name)
def test_packed_weights_are_what_another_implementation_makes_of_them(tmp_path: Path, kind: Kind):
    blocks = random_blocks(kind)
    tensor = one_tensor(tmp_path / "model.gguf", blocks, kind)
    expected = dequant.dequantize(torch.from_numpy(blocks.reshape(-1)), kind.value).view(ROWS, WIDTH)
    assert (tensor.name, tensor.shape, tensor.size_bytes) == ("taken", (ROWS, WIDTH), blocks.size)
    exact = tensor.read_as(torch.float32).read()
    assert torch.allclose(exact, expected, rtol=1e-6, atol=0)
    assert torch.equal(tensor.read_as(torch.bfloat16)[...], exact.bfloat16())


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q4_1], ids=lambda kind: kind.name)
def test_the_group_32_formats_are_read_to_the_last_bit(tmp_path: Path, kind: Kind):
    blocks = random_blocks(kind)
    expected = dequant.dequantize(torch.from_numpy(blocks.reshape(-1)), kind.value).view(ROWS, WIDTH)
    assert torch.equal(one_tensor(tmp_path / "model.gguf", blocks, kind).read_as(torch.float32).read(), expected)


@pytest.mark.parametrize("kind", sorted(FIVE_BITS), ids=lambda kind: kind.name)
def test_five_bits_are_read_as_the_format_says(tmp_path: Path, kind: Kind):
    blocks = random_blocks(kind)
    has_offset = kind is Kind.Q5_1
    flat = blocks.reshape(-1, 24 if has_offset else 22)
    scale = flat[:, :2].copy().view(np.float16).astype(np.float32)
    offset = flat[:, 2:4].copy().view(np.float16).astype(np.float32) if has_offset else -16 * scale
    rest = flat[:, 4:] if has_offset else flat[:, 2:]
    fifth = np.unpackbits(rest[:, :4], axis=1, bitorder="little")
    low = np.concatenate([rest[:, 4:] & 15, rest[:, 4:] >> 4], axis=1)
    codes = (low | fifth << 4).astype(np.float32)
    values = one_tensor(tmp_path / "model.gguf", blocks, kind).read_as(torch.float32).read()
    assert np.allclose(
        values.numpy(), (codes * scale + offset).reshape(ROWS, WIDTH), rtol=1e-5, atol=1e-6 * scale.max()
    )


@pytest.mark.parametrize("kind", sorted(PLAIN), ids=lambda kind: kind.name)
def test_plain_weights_keep_their_dtype_whatever_is_asked_for(tmp_path: Path, kind: Kind):
    values = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(3)).to(PLAIN[kind])
    tensor = one_tensor(tmp_path / "model.gguf", values.view(torch.uint8).numpy(), kind)
    assert torch.equal(tensor.read_as(torch.float32).read(), values)


def test_a_type_that_cannot_be_read_is_refused_by_name(tmp_path: Path):
    with pytest.raises(ModelError, match=r"'given' in model\.gguf is stored as I32"):
        one_tensor(tmp_path / "model.gguf", np.zeros((2, 32), np.int32), Kind.I32)


def test_a_file_that_shrinks_is_refused(tmp_path: Path):
    path = tmp_path / "model.gguf"
    tensor = one_tensor(path, random_blocks(Kind.Q8_0), Kind.Q8_0)
    with path.open("r+b") as file:
        file.truncate(tensor.start + 100)
    with pytest.raises(ModelError, match="became shorter"):
        tensor.read()
