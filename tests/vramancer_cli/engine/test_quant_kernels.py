"""Every kernel against its own dequantised weight, and against what else is in the batch."""

from __future__ import annotations

import pytest
import torch

from vramancer_cli.engine.quant import QuantisedWeight, rounded_to
from vramancer_cli.engine.quant_choice import Make, candidates
from vramancer_cli.engine.quant_kernels import (
    CpuHalves,
    CpuInt4,
    Dequantise,
    OnednnInt8,
    TorchInt8,
)
from vramancer_cli.engine.quant_native import native_kernels
from vramancer_cli.models.quantisation import INT4, INT8, INT8_GROUPED, Format

CPU = torch.device("cpu")
FORMATS = (INT8, INT8_GROUPED, INT4, Format(4, 64), Format(4, 128))
KERNELS: list[tuple[Make, Format]] = [
    (OnednnInt8, INT8), (TorchInt8, INT8), (CpuHalves, INT8_GROUPED),
    *((CpuInt4, held) for held in FORMATS if held.bits == 4), *((Dequantise, held) for held in FORMATS),
    *((make, held) for held in FORMATS for make in native_kernels(held, CPU)),
]  # fmt: skip
EVERY_KERNEL = pytest.mark.parametrize(
    ("make", "held"), KERNELS, ids=[f"{make.__name__}-{held.bits}-{held.group}" for make, held in KERNELS]
)
INT8_KERNELS = [make for make, held in KERNELS if held == INT8 and make is not Dequantise]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight(held: Format, rows: int = 208, columns: int = 512) -> QuantisedWeight:
    return rounded_to(held, noise(rows, columns, seed=1))


def expected(rows: torch.Tensor, quantised: QuantisedWeight) -> torch.Tensor:
    return rows.float() @ quantised.dequantise(slice(None), torch.float32).t()


def test_every_candidate_of_this_machine_is_tested_here():
    found = {(make, held) for held in FORMATS for make in candidates(held, CPU)}
    assert found == set(KERNELS)


@EVERY_KERNEL
@DTYPES
@pytest.mark.parametrize("count", [1, 3, 16, 40])
def test_a_kernel_is_within_a_hundredth_of_its_dequantised_weight(
    make: Make, held: Format, dtype: torch.dtype, count: int
):
    quantised = weight(held)
    rows = noise(count, 512).to(dtype)
    found = make(quantised)(rows)
    reference = expected(rows, quantised)
    assert (found.dtype, found.shape) == (dtype, (count, 208))
    assert (found.float() - reference).norm() < 1e-2 * reference.norm()


@pytest.mark.parametrize("make", INT8_KERNELS)
def test_nearly_all_of_an_int8_kernels_error_is_the_rounding_of_its_rows(make: Make):
    quantised = weight(INT8)
    rows = noise(16, 512)
    steps = rows.abs().amax(1, keepdim=True) / 127
    rounded = (rows / steps).round() * steps
    assert torch.allclose(make(quantised)(rows), expected(rounded, quantised), rtol=1e-5, atol=1e-4)


@EVERY_KERNEL
@DTYPES
def test_an_outlier_beside_a_request_does_not_change_a_bit_of_it(make: Make, held: Format, dtype: torch.dtype):
    kernel = make(weight(held))
    rows = noise(16, 512).to(dtype)
    wild = rows.clone()
    wild[5] *= 1000
    wild[5, 77] = 30_000
    others = [row for row in range(16) if row != 5]
    calm, stormy = kernel(rows), kernel(wild)
    assert torch.equal(calm[others], stormy[others])
    assert not torch.equal(calm[5], stormy[5])


@pytest.mark.parametrize(("make", "held"), [pair for pair in KERNELS if pair[0] is not Dequantise])
def test_a_request_alone_gets_the_bits_that_it_gets_in_a_batch(make: Make, held: Format):
    """More than the grade "stable" promises; the ordinary product, and with it the fallback, does not do as much."""
    kernel = make(weight(held))
    rows = noise(48, 512).to(torch.bfloat16)
    together = kernel(rows)
    assert all(
        torch.equal(kernel(rows[i : i + count]), together[i : i + count]) for i in (0, 9) for count in (1, 5, 33)
    )


@DTYPES
def test_int8_kernels_give_the_same_bits(dtype: torch.dtype):
    """So it does not matter which one a node measures to be the fastest."""
    quantised = weight(INT8, columns=4096)
    rows = noise(7, 4096).to(dtype)
    first, *others = (make(quantised)(rows) for make in INT8_KERNELS)
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("make", INT8_KERNELS)
def test_the_largest_int8_sums_do_not_overflow(make: Make):
    quantised = rounded_to(INT8, torch.ones(16, 4096))
    assert torch.allclose(make(quantised)(torch.ones(2, 4096)), torch.tensor(4096.0), rtol=1e-5)


@EVERY_KERNEL
def test_what_is_not_finite_does_not_look_finite_afterwards(make: Make, held: Format):
    rows = noise(3, 512)
    rows[1, 7] = float("nan")
    rows[2, 7] = float("inf")
    finite = torch.isfinite(make(weight(held))(rows)).all(dim=1)
    assert finite.tolist() == [True, False, False]


def test_int4_packed_in_slices_is_int4_packed_at_once():
    quantised = rounded_to(INT4, noise(1008, 2048))
    whole = torch.ops.aten._convert_weight_to_int4pack_for_cpu(quantised.unpack(slice(None)).int(), 1)  # pyright: ignore
    assert torch.equal(CpuInt4(quantised)._packed, whole)  # pyright: ignore[reportArgumentType]
