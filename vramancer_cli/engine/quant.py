"""Quantised weights: codes and what scales them, rounding to a format, and the way back.

A format is numbers, not a memory layout: every kernel (`quant_kernels`) multiplies the same dequantised weight. Must
never import transformers or choose a kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from transport.types import WeightFormat
from vramancer_cli.models.quantisation import GROUP, Format, format_of

_AT_ONCE_ELEMENTS = 1 << 17
"""Weights rounded at once: their float32 copies stay within a processor's cache."""
_REFITS = 2
"""Rounds of least squares for each int4 group. Two more would take as long again, for 1 % less error."""
SMALLEST = 1e-20
"""Scale of a group, and of a row, that holds only zeros."""
INT8_LIMIT = 127
INT4_MIDDLE = 8


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """`code * scale`: codes int8 [N, K]; scales float32, [N] for whole outputs or [N, K / group]."""

    codes: torch.Tensor
    scales: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def format(self) -> Format:
        return Format(8, self.shape[1] // self.scales.shape[1] if self.scales.dim() == 2 else 0)

    @property
    def has_float16_scales(self) -> bool:
        """A checkpoint's, of more digits than bfloat16 has."""
        return self.scales.dim() == 2

    def to(self, device: torch.device) -> Int8Weight:
        return Int8Weight(self.codes.to(device), self.scales.to(device))

    def dequantise(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Some outputs as [n, K] in `dtype`."""
        codes, scales = self.codes[rows], self.scales[rows]
        groups = codes.view(*scales.shape, -1)  # of a whole output where there is one scale for it
        return (groups * scales[..., None]).view(codes.shape).to(dtype)


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """`(code - zero) * scale + offset` with a scale and an offset for every group of weights of a row.

    codes uint8 [N, K / 2]: two in a byte, the even one in the upper half; scales_and_offsets [K / group, N, 2],
    bfloat16 where they were fitted, float16 where a checkpoint has them so.
    """

    codes: torch.Tensor
    scales_and_offsets: torch.Tensor
    zero: int = INT4_MIDDLE

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], 2 * self.codes.shape[1]

    @property
    def format(self) -> Format:
        return Format(4, self.shape[1] // self.scales_and_offsets.shape[0])

    @property
    def has_float16_scales(self) -> bool:
        """A checkpoint's, of more digits than bfloat16 has."""
        return self.scales_and_offsets.dtype == torch.float16

    def to(self, device: torch.device) -> Int4Weight:
        return Int4Weight(self.codes.to(device), self.scales_and_offsets.to(device), self.zero)

    def unpack(self, rows: slice) -> torch.Tensor:
        """Codes from 0 to 15 of some outputs, uint8 [n, K]."""
        both = self.codes[rows]
        return torch.stack((both >> 4, both & 15), -1).flatten(1)

    def dequantise(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Some outputs as [n, K] in `dtype`."""
        codes = self.unpack(rows).to(torch.int8).sub_(self.zero)
        scales, offsets = self.scales_and_offsets[:, rows].to(torch.float32).permute(2, 1, 0).contiguous()[..., None]
        groups = codes.view(*scales.shape[:2], -1)
        return torch.addcmul(offsets, groups, scales).view(codes.shape).to(dtype)


QuantisedWeight = Int8Weight | Int4Weight


def quantise(weight: torch.Tensor, quantize: WeightFormat) -> QuantisedWeight:
    """[N, K] in any float dtype, K a multiple of 32, as a plan of that format holds it, on the weight's device.

    Of "none" and "stored", which round nothing, there is none.
    """
    held = format_of(quantize, weight.shape[1])
    assert held is not None
    return rounded_to(held, weight)


def rounded_to(held: Format, weight: torch.Tensor) -> QuantisedWeight:
    """As `quantise`."""
    return quantise_int8(weight, held.group) if held.bits == 8 else quantise_int4(weight, held.group)


def quantise_int8(weight: torch.Tensor, group: int = 0) -> Int8Weight:
    """Per output, or per group of an output, by the largest magnitude: no weight is clipped."""
    parts = weight.view(weight.shape[0], -1, group) if group else weight
    scales = parts.abs().amax(-1).float().div_(INT8_LIMIT).clamp_min_(SMALLEST)
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for rows in row_slices(*weight.shape):
        codes[rows] = torch.div(parts[rows], scales[rows][..., None]).round_().to(torch.int8).flatten(1)
    return Int8Weight(codes, scales)


def quantise_int4(weight: torch.Tensor, group: int = GROUP) -> Int4Weight:
    """Per group, by least squares: see `_fit`."""
    rows_count, columns = weight.shape
    codes = torch.empty(rows_count, columns // 2, dtype=torch.uint8, device=weight.device)
    shape = (columns // group, rows_count, 2)
    scales_and_offsets = torch.empty(shape, dtype=torch.bfloat16, device=weight.device)
    for rows in row_slices(rows_count, columns):
        groups = weight[rows].to(torch.float32).reshape(-1, columns // group, group)
        scales, offsets = _fit(groups)
        codes[rows] = packed_pairs(_codes(groups, scales, offsets).add_(INT4_MIDDLE).to(torch.uint8).flatten(1))
        scales_and_offsets[:, rows] = torch.cat((scales, offsets), -1).to(torch.bfloat16).transpose(0, 1)
    return Int4Weight(codes, scales_and_offsets)


def may_join(weights: Sequence[QuantisedWeight]) -> bool:
    """Whether `joined_weights` can hold all of them."""

    def kind(weight: QuantisedWeight) -> tuple[object, ...]:
        return weight.format, weight.shape[1], weight.has_float16_scales, getattr(weight, "zero", None)

    return len({kind(weight) for weight in weights}) == 1


def joined_weights(weights: Sequence[QuantisedWeight]) -> QuantisedWeight:
    """One below the other: each output keeps its codes and scales. Only such as `may_join`."""
    codes = torch.cat([weight.codes for weight in weights])
    if isinstance(weights[0], Int8Weight):
        return Int8Weight(codes, torch.cat([weight.scales for weight in weights if isinstance(weight, Int8Weight)]))
    scales = [weight.scales_and_offsets for weight in weights if isinstance(weight, Int4Weight)]
    return Int4Weight(codes, torch.cat(scales, dim=1), weights[0].zero)


def packed_pairs(codes: torch.Tensor) -> torch.Tensor:
    """Codes from 0 to 15, uint8 [n, K], as Int4Weight has them: [n, K / 2]."""
    return codes[:, ::2] << 4 | codes[:, 1::2]


def row_slices(rows_count: int, columns: int, elements: int = _AT_ONCE_ELEMENTS, step: int = 1) -> Iterator[slice]:
    """All rows, in slices of about `elements`, each but the last a multiple of `step` rows."""
    count = max(1, elements // (columns * step)) * step
    for first in range(0, rows_count, count):
        yield slice(first, min(first + count, rows_count))


def _fit(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and offset [n, g, 1] of groups [n, g, size], float32 in and out, rounded to bfloat16.

    Starts from the range of the group; then, in turn, the codes nearest to the weights, and the line through
    (code, weight) of least squared error: Lloyd's alternation ("Least squares quantization in PCM", 1982) with evenly
    spaced levels. The error is about 6 % below that of the range alone.
    """
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scales = _rounded((high - low) / (2 * INT4_MIDDLE - 1))
    offsets = _bfloat16((low + high + scales) / 2)
    mean = groups.mean(-1, keepdim=True)
    centred = groups - mean
    products = torch.empty_like(groups)
    for _ in range(_REFITS):
        codes = _codes(groups, scales, offsets)
        code_mean = codes.mean(-1, keepdim=True)
        spread = torch.mul(codes, codes, out=products).sum(-1, keepdim=True) - groups.shape[-1] * code_mean.square()
        slope = torch.mul(centred, codes, out=products).sum(-1, keepdim=True) / spread
        scales = _rounded(torch.where(spread > 0, slope, scales))  # no line goes through a single code
        offsets = _bfloat16(mean - scales * code_mean)
    return scales, offsets


def _codes(groups: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """From -8 to 7, as float32."""
    return torch.sub(groups, offsets).div_(scales).round_().clamp_(-INT4_MIDDLE, INT4_MIDDLE - 1)


def _rounded(scales: torch.Tensor) -> torch.Tensor:
    return _bfloat16(scales.clamp_min(SMALLEST))


def _bfloat16(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.bfloat16).to(torch.float32)
