"""GGUF's simple blocks as quantised weights, without a bit lost: 32 weights with a float16 scale.

Layout of a block, little-endian (ggml-common.h of https://github.com/ggml-org/ggml): Q8_0 is scale, 32 int8; Q4_0 is
scale, 16 bytes; Q4_1 is scale, least value, 16 bytes. Byte i of the 16 has weight i in its lower half and weight
i + 16 in its upper one. Must never read a file.
"""

from __future__ import annotations

from typing import Final

import torch
from gguf import GGMLQuantizationType as Kind

from vramancer_cli.engine.quant import Int4Weight, Int8Weight, QuantisedWeight, packed_pairs
from vramancer_cli.models.quantisation import INT4, INT8_GROUPED, Format

FORMATS: Final[dict[Kind, Format]] = {Kind.Q8_0: INT8_GROUPED, Kind.Q4_0: INT4, Kind.Q4_1: INT4}
_FLOAT16_BYTES: Final = 2
_Q4_0_ZERO: Final = 8
"""The code that stands for nothing; Q4_1 counts from its least value, code 0."""


def taken_over(blocks: torch.Tensor, kind: Kind) -> QuantisedWeight:
    """`blocks` uint8 [N, K / 32, bytes of a block], of a kind in FORMATS. Dequantised, the file's float32 to the bit.

    No value is judged: a scale that is not finite shows in the first logits.
    """
    if kind is Kind.Q8_0:
        codes = blocks[..., _FLOAT16_BYTES:].flatten(1).view(torch.int8)
        return Int8Weight(codes, _halves(blocks, 1)[..., 0].float())
    numbers = 1 if kind is Kind.Q4_0 else 2
    both = blocks[..., numbers * _FLOAT16_BYTES :]
    codes = packed_pairs(torch.cat((both & 15, both >> 4), -1).flatten(1))
    scales = _halves(blocks, numbers).transpose(0, 1)
    if kind is Kind.Q4_0:
        scales = torch.cat((scales, torch.zeros_like(scales)), -1)
    return Int4Weight(codes, scales.contiguous(), _Q4_0_ZERO if kind is Kind.Q4_0 else 0)


def _halves(blocks: torch.Tensor, count: int) -> torch.Tensor:
    """The float16 numbers that blocks begin with, [N, K / 32, count]."""
    return blocks[..., : count * _FLOAT16_BYTES].contiguous().view(torch.float16)
