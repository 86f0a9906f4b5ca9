"""Kernels that multiply by a quantised weight, for CPUs, for CUDA, and one for everything.

Which of them a machine uses is measured (`quant_choice`). Must never round a weight or know what a layer is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import torch
from torch.nn.functional import linear

from vramancer_cli.engine.quant import (
    INT4_MIDDLE,
    INT8_LIMIT,
    SMALLEST,
    Int4Weight,
    Int8Weight,
    QuantisedWeight,
    packed_pairs,
    row_slices,
)

_UNROUNDED_ELEMENTS: Final = {"cpu": 1 << 17}
_UNROUNDED_ELSEWHERE: Final = 1 << 22
"""Weights dequantised at once where no kernel takes them as they are: what a processor's cache holds, else 16 MiB in
float32."""
PACKED_ROWS: Final = 64
"""Outputs that the CPU's int4 layout keeps together."""
_CUDA_LEAST_ROWS: Final = 32


class Kernel(Protocol):
    """Multiplies rows [M, K] by one weight, and gives [M, N] in the rows' dtype. No row feels another."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor: ...


# --- int8: rows quantised one by one, products summed exactly in int32 ------------------------------------------------


class OnednnInt8:
    """oneDNN's int8 matrix product, on processors with int8 dot products (AVX512-VNNI, AMX) and others.

    It takes one activation scale per tensor, with which an outlier would cost its neighbours their precision: so it
    gets a scale of 1, and rows are scaled afterwards. Unsigned codes (offset 128): it is slow with signed ones.
    """

    def __init__(self, weight: Int8Weight) -> None:
        self._packed = torch.ops.onednn.qlinear_prepack(weight.codes, None)
        self._scales = weight.scales
        self._offsets = torch.zeros(weight.shape[0], dtype=torch.int32)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        codes, row_scales = _quantise_rows(rows)
        sums = torch.ops.onednn.qlinear_pointwise(
            codes.add_(128).to(torch.uint8), 1.0, 128, self._packed, self._scales, self._offsets,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return sums.mul_(row_scales).to(rows.dtype)


class TorchInt8:
    """`_int_mm`: on CUDA cuBLASLt's int8 product, on a CPU oneDNN's with other packing."""

    def __init__(self, weight: Int8Weight) -> None:
        self._codes = weight.codes.t()
        self._scales = weight.scales

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        codes, row_scales = _quantise_rows(rows)
        signed = codes.to(torch.int8)
        if signed.is_cuda:
            signed = _padded(signed)
        sums = torch.ops.aten._int_mm(signed, self._codes)[: len(rows)]
        return sums.mul(self._scales).mul_(row_scales).to(rows.dtype)


def _padded(codes: torch.Tensor) -> torch.Tensor:
    """With rows of zeros to what cuBLASLt takes: a multiple of 8, and more than 16."""
    wanted = max(_CUDA_LEAST_ROWS, -(-len(codes) // 8) * 8)
    return torch.nn.functional.pad(codes, (0, 0, 0, wanted - len(codes)))


def _quantise_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[M, K] to whole numbers from -127 to 127 (float32 [M, K]) and a scale for each row (float32 [M, 1]).

    A row with values that are not finite gets a scale that is not finite either, so that its results show it.
    """
    scales = rows.abs().amax(1, keepdim=True).float().div_(INT8_LIMIT).clamp_min_(SMALLEST)
    return torch.div(rows, scales).round_(), scales


# --- int4: weight only, activations in bfloat16 -----------------------------------------------------------------------


class CpuInt4:
    """`_weight_int4pack_mm_for_cpu`. In bfloat16 whatever the plan computes in: its float32 loop is 40 times slower,
    its float16 loop 70."""

    def __init__(self, weight: Int4Weight) -> None:
        slices = row_slices(*weight.shape, step=PACKED_ROWS)
        parts = [torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.unpack(s).int(), 1) for s in slices]
        self._packed = torch.cat(parts)
        self._group, self._scales = weight.format.group, _around_the_middle(weight)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        half = rows.to(torch.bfloat16)
        return torch.ops.aten._weight_int4pack_mm_for_cpu(half, self._packed, self._group, self._scales).to(rows.dtype)


class CudaInt4:
    """`_weight_int4pack_mm`, the tensor-core kernel for bfloat16 that torch brings compiled."""

    def __init__(self, weight: Int4Weight) -> None:
        self._packed = torch.ops.aten._convert_weight_to_int4pack(weight.codes, 8)
        self._group, self._scales = weight.format.group, _around_the_middle(weight)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        half = rows.to(torch.bfloat16)
        return torch.ops.aten._weight_int4pack_mm(half, self._packed, self._group, self._scales).to(rows.dtype)


def _around_the_middle(weight: Int4Weight) -> torch.Tensor:
    """Scales and offsets as the kernels have them, [K / group, N, 2] in bfloat16: offsets are the value of code 8."""
    held = weight.scales_and_offsets
    if held.dtype == torch.bfloat16 and weight.zero == INT4_MIDDLE:
        return held
    scales, offsets = held.float().unbind(-1)
    return torch.stack((scales, offsets + (INT4_MIDDLE - weight.zero) * scales), -1).to(torch.bfloat16)


# --- int8 in groups: weight only, as two weights in int4 --------------------------------------------------------------


class _Halves:
    """No kernel of torch takes int8 with a scale for each group, so each code becomes two of four bits.

    code = 16 * upper + lower, upper from -8 to 7, lower from 0 to 15. Of the lower half, which the kernels count from
    its middle, 8 scales are missing: 8 / 17 as the offset of either half, because the upper one counts 16 times, let
    both share what scales them.
    """

    def __init__(self, weight: Int8Weight, product: Callable[[Int4Weight], Kernel]) -> None:
        scales = weight.scales.t()
        shared = torch.stack((scales, scales * (INT4_MIDDLE / 17)), -1).to(torch.bfloat16)
        upper = packed_pairs((weight.codes >> 4).add_(INT4_MIDDLE).view(torch.uint8))
        self._upper = product(Int4Weight(upper, shared))
        self._lower = product(Int4Weight(packed_pairs((weight.codes & 15).view(torch.uint8)), shared))

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return self._upper(rows).mul_(16).add_(self._lower(rows))


class CpuHalves(_Halves):
    def __init__(self, weight: Int8Weight) -> None:
        super().__init__(weight, CpuInt4)


class CudaHalves(_Halves):
    def __init__(self, weight: Int8Weight) -> None:
        super().__init__(weight, CudaInt4)


# --- any format, any device -------------------------------------------------------------------------------------------


class Dequantise:
    """The weight is turned back piece by piece, and multiplied by the device's ordinary product."""

    def __init__(self, weight: QuantisedWeight) -> None:
        self._weight = weight

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        output_count, columns = self._weight.shape
        output = rows.new_empty(len(rows), output_count)
        at_once = _UNROUNDED_ELEMENTS.get(rows.device.type, _UNROUNDED_ELSEWHERE)
        for some in row_slices(output_count, columns, at_once):
            output[:, some] = linear(rows, self._weight.dequantise(some, rows.dtype))
        return output
