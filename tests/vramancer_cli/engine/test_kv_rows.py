"""Rows of keys or values: what is written is read back, exactly or within half a step of its own scale."""

from __future__ import annotations

import pytest
import torch

from vramancer_cli.engine.kv_rows import KvRows, PlainRows, RoundedRows

SHAPE = (6, 4, 2, 8)
CPU = torch.device("cpu")
SLOTS = torch.tensor([20, 21, 22, 23, 0, 1])  # block 5, then 0


def written(rows: KvRows, exact: torch.Tensor) -> torch.Tensor:
    rows.write(SLOTS, exact)
    return rows.gather(torch.tensor([5, 0]), 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_plain_rows_are_read_back_as_they_were(dtype: torch.dtype):
    exact = torch.randn(6, 2, 8, dtype=dtype)
    rows = PlainRows(SHAPE, dtype, CPU)
    assert torch.equal(written(rows, exact), exact)
    assert torch.equal(rows.view(20, 4), exact[:4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounded_rows_are_off_by_half_a_step_of_their_own_vector(dtype: torch.dtype):
    exact = torch.randn(6, 2, 8, dtype=dtype)
    exact[2, 1] *= 50  # an outlier moves nobody else's scale
    rows = RoundedRows(SHAPE, dtype, CPU)
    got = written(rows, exact)
    assert got.dtype == dtype
    steps = exact.float().abs().amax(-1, keepdim=True) / 127
    rounding = exact.float().abs() * torch.finfo(dtype).eps
    assert bool(((got.float() - exact.float()).abs() <= steps * 0.501 + 2 * rounding).all())
    assert torch.equal(rows.view(20, 4), got[:4])


def test_zeros_stay_zeros():
    rows = RoundedRows(SHAPE, torch.float32, CPU)
    assert torch.equal(written(rows, torch.zeros(6, 2, 8)), torch.zeros(6, 2, 8))


@pytest.mark.parametrize("kind", [PlainRows, RoundedRows])
def test_a_block_is_copied_with_all_that_belongs_to_it(kind: type[PlainRows] | type[RoundedRows]):
    rows = kind(SHAPE, torch.float32, CPU)
    written(rows, torch.randn(6, 2, 8))
    rows.copy(5, 3)
    assert torch.equal(rows.view(12, 4), rows.view(20, 4))


def test_rounded_rows_take_a_byte_each_and_a_scale_for_each_vector():
    assert RoundedRows(SHAPE, torch.float32, CPU).nbytes == 6 * 4 * 2 * (8 + 4)
    assert PlainRows(SHAPE, torch.bfloat16, CPU).nbytes == 6 * 4 * 2 * 8 * 2
