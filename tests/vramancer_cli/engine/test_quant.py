"""Rounding to the two formats, and the way back."""

from __future__ import annotations

import pytest
import torch

from vramancer_cli.engine.quant import Int4Weight, Int8Weight, quantise, quantise_int4, row_slices

EVERYTHING = slice(None)


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def from_range(weight: torch.Tensor) -> torch.Tensor:
    """Plain rounding to int4: 16 even steps between the least and the largest of each 32."""
    groups = weight.view(-1, 32)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    step = (high - low) / 15
    return (((groups - low) / step).round() * step + low).view(weight.shape)


@pytest.mark.parametrize(("quantize", "most"), [("int8", 0.0085), ("int4", 0.074)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_way_back_gives_nearly_the_weight(quantize: str, most: float, dtype: torch.dtype):
    weight = gaussian(96, 2048).to(dtype)
    back = quantise(weight, quantize).dequantise(EVERYTHING, torch.float32)  # pyright: ignore[reportArgumentType]
    assert relative(back, weight.float()) < most


def test_int8_is_off_by_half_a_step_at_most_and_clips_nothing():
    weight = gaussian(8, 64) * torch.logspace(-6, 6, 8)[:, None]
    quantised = quantise(weight, "int8")
    assert isinstance(quantised, Int8Weight)
    step = weight.abs().amax(1, keepdim=True) / 127
    assert bool(((quantised.dequantise(EVERYTHING, torch.float32) - weight).abs() <= 0.5001 * step).all())
    assert quantised.codes.abs().amax(1).tolist() == [127] * 8


def test_fitted_groups_are_clearly_better_than_their_range():
    weight = gaussian(64, 1024)
    fitted = quantise(weight, "int4").dequantise(EVERYTHING, torch.float32)
    assert relative(fitted, weight) < 0.94 * relative(from_range(weight), weight)


def test_an_outlier_spoils_its_own_group_alone():
    weight = gaussian(4, 128)
    spoiled = weight.clone()
    spoiled[2, 40] = 1000
    before, after = (quantise(w, "int4").dequantise(EVERYTHING, torch.float32) for w in (weight, spoiled))
    changed = before != after
    assert changed[2, 32:64].any()
    changed[2, 32:64] = False
    assert not changed.any()


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("value", [0.0, 3.0, -1e-3])
def test_groups_of_one_value_come_back(quantize: str, value: float):
    weight = torch.full((4, 64), value)
    back = quantise(weight, quantize).dequantise(EVERYTHING, torch.float32)  # pyright: ignore[reportArgumentType]
    assert torch.allclose(back, weight, rtol=4e-3)


def test_pieces_are_the_whole():
    """Rounding and dequantising go by slices of rows, which nobody can see afterwards."""
    weight = gaussian(300, 1024)  # several slices
    quantised = quantise_int4(weight)
    alone = [quantise_int4(weight[row : row + 1]).dequantise(EVERYTHING, torch.float32) for row in (0, 127, 128, 299)]
    whole = quantised.dequantise(EVERYTHING, torch.float32)
    assert all(torch.equal(part[0], whole[row]) for part, row in zip(alone, (0, 127, 128, 299), strict=True))
    assert torch.equal(quantised.dequantise(slice(100, 200), torch.float32), whole[100:200])


def test_int4_keeps_two_codes_in_a_byte_the_even_one_above():
    weight = Int4Weight(torch.tensor([[0x1F, 0x80]], dtype=torch.uint8), torch.zeros(1, 1, 2, dtype=torch.bfloat16))
    assert weight.shape == (1, 4)
    assert weight.unpack(EVERYTHING).tolist() == [[1, 15, 8, 0]]


def test_slices_cover_all_rows_in_whole_steps():
    slices = list(row_slices(100, 64, elements=2000, step=16))
    assert [(s.start, s.stop) for s in slices] == [(0, 16), (16, 32), (32, 48), (48, 64), (64, 80), (80, 96), (96, 100)]
