"""The native products by quantised weights: exact, alike on every instruction set, and never beyond their tensors."""

from __future__ import annotations

import pytest
import torch

from vramancer_cli.engine import native
from vramancer_cli.engine.quant import Int8Weight, quantise_int8
from vramancer_cli.engine.quant_kernels import OnednnInt8

pytestmark = pytest.mark.skipif(not native.is_there(), reason="the native kernels are not built here")

SHAPES = ((64, 64), (33, 96), (5, 2048), (512, 2048))
ROW_COUNTS = (0, 1, 2, 3, 4, 5, 12, 13, 16, 17, 128, 300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_int8_gives_the_bits_of_onednn_at_every_row_count(instruction_set: int, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        weight = quantise_int8(torch.randn(shape))
        packed = torch.ops.vramancer.pack_int8(weight.codes)
        theirs = OnednnInt8(Int8Weight(weight.codes.clone(), weight.scales))
        for count in ROW_COUNTS:
            rows = torch.randn(count, shape[1]).to(dtype)
            found = torch.ops.vramancer.linear_int8(rows, packed, weight.scales)
            assert found.shape == (count, shape[0]) and found.dtype == dtype
            assert count == 0 or torch.equal(found, theirs(rows)), (shape, count)
