"""Our own CPU kernels as `quant_kernels.Kernel`s: activations rounded to int8, for each row or for each group of one.

One packing serves every row count, and a row gives the same bits at each. Must never round a weight or know what a
layer is.
"""

from __future__ import annotations

import torch

from vramancer_cli.engine import native
from vramancer_cli.engine.quant import Int4Weight, Int8Weight
from vramancer_cli.models.quantisation import INT8, Format


class NativeInt8:
    """A scale for each output, and for each row: whole sums, so that it gives the bits of OnednnInt8."""

    def __init__(self, weight: Int8Weight) -> None:
        self._packed = torch.ops.vramancer.pack_int8(weight.codes)
        self._scales = weight.scales

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.ops.vramancer.linear_int8(rows.contiguous(), self._packed, self._scales)


class NativeInt8Groups:
    """A scale for each group of weights of an output, and of activations of a row."""

    def __init__(self, weight: Int8Weight) -> None:
        self._outputs, self._group = weight.shape[0], weight.format.group
        self._packed = torch.ops.vramancer.pack_int8_groups(weight.codes, weight.scales.contiguous())

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.ops.vramancer.linear_int8_groups(rows.contiguous(), self._packed, self._outputs, self._group)


class NativeInt4:
    """As NativeInt8Groups, with offsets. Scales keep the bits that they have, bfloat16 or a checkpoint's float16."""

    def __init__(self, weight: Int4Weight) -> None:
        self._facts = weight.shape[0], weight.format.group, weight.zero, weight.has_float16_scales
        self._packed = torch.ops.vramancer.pack_int4(weight.codes, weight.scales_and_offsets.contiguous())

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.ops.vramancer.linear_int4(rows.contiguous(), self._packed, *self._facts)


NativeKernel = type[NativeInt8] | type[NativeInt8Groups] | type[NativeInt4]


def native_kernels(held: Format, device: torch.device) -> tuple[NativeKernel, ...]:
    """Those for a format on a device: none where this installation has no native operators."""
    if device.type != "cpu" or not native.is_there():
        return ()
    if held.bits == 4:
        return (NativeInt4,)
    return (NativeInt8,) if held == INT8 else (NativeInt8Groups,)
