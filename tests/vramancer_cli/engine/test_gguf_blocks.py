"""The simple blocks, taken over, against the format's own dequantisation."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from vramancer_cli.engine.gguf_blocks import FORMATS, taken_over
from vramancer_cli.engine.quant import Int4Weight

ROWS, GROUPS = 6, 5
EVERYTHING = slice(None)
EVERY_KIND = pytest.mark.parametrize("kind", sorted(FORMATS), ids=lambda kind: kind.name)


def random_blocks(kind: Kind, most: float) -> np.ndarray:
    """Any codes; float16 numbers of either sign up to `most`, the smallest that there are among them."""
    random = np.random.default_rng(kind.value)
    blocks = random.integers(0, 256, (ROWS, GROUPS, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for at in (0, 2) if kind is Kind.Q4_1 else (0,):
        numbers = random.uniform(-most, most, (ROWS, GROUPS, 1)).astype(np.float16)
        numbers[0, 0], numbers[1, 1] = 2.0**-24, 0
        blocks[..., at : at + 2] = numbers.view(np.uint8)
    return blocks


def expected(blocks: np.ndarray, kind: Kind) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(blocks.reshape(ROWS, -1), kind))


@EVERY_KIND
@pytest.mark.parametrize("most", [1e-4, 0.05, 60_000.0])
def test_not_a_bit_is_lost(kind: Kind, most: float):
    blocks = random_blocks(kind, most)
    weight = taken_over(torch.from_numpy(blocks), kind)
    assert weight.format == FORMATS[kind]
    assert weight.shape == (ROWS, GROUPS * 32)
    assert torch.equal(weight.dequantise(EVERYTHING, torch.float32), expected(blocks, kind))


@EVERY_KIND
def test_the_bytes_held_are_those_of_the_format(kind: Kind):
    weight = taken_over(torch.from_numpy(random_blocks(kind, 1.0)), kind)
    scales = weight.scales_and_offsets if isinstance(weight, Int4Weight) else weight.scales
    assert weight.codes.nbytes + scales.nbytes == FORMATS[kind].held_bytes(*weight.shape)


@EVERY_KIND
def test_a_scale_that_is_not_finite_stays_so(kind: Kind):
    blocks = random_blocks(kind, 1.0)
    blocks[2, 3, :2] = np.array([np.inf], np.float16).view(np.uint8)
    finite = taken_over(torch.from_numpy(blocks), kind).dequantise(EVERYTHING, torch.float32).isfinite()
    spoiled = [
        (row, group)
        for row in range(ROWS)
        for group in range(GROUPS)
        if not finite.view(ROWS, GROUPS, 32)[row, group].all()
    ]
    assert spoiled == [(2, 3)]
