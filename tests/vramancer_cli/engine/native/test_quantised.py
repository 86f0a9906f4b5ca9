"""The native products by quantised weights: exact, alike on every instruction set, and never beyond their tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vramancer_cli.engine import native
from vramancer_cli.engine.quant import Int4Weight, Int8Weight, quantise_int4, quantise_int8
from vramancer_cli.engine.quant_kernels import OnednnInt8
from vramancer_cli.engine.quant_native import NativeInt4, NativeInt8, NativeInt8Groups

pytestmark = pytest.mark.skipif(not native.is_there(), reason="the native kernels are not built here")

SHAPES = ((64, 64), (33, 96), (5, 2048))
ROW_COUNTS = (0, *range(1, 18), 128, 300)
PLAIN, AVX2 = 0, 1


def usable() -> list[int]:
    """The instruction sets that this machine has."""
    return [number for number in range(len(native.INSTRUCTION_SETS)) if is_usable(number)] if native.is_there() else []


def is_usable(number: int) -> bool:
    chosen = torch.ops.vramancer.isa()
    try:
        torch.ops.vramancer.use_isa(number)
    except RuntimeError:
        return False
    torch.ops.vramancer.use_isa(chosen)
    return True


@pytest.fixture(autouse=True)
def _chosen() -> Iterator[None]:
    chosen = torch.ops.vramancer.isa()
    yield
    torch.ops.vramancer.use_isa(chosen)


EACH = pytest.mark.parametrize("number", usable(), ids=lambda number: native.INSTRUCTION_SETS[number])


def rounded(rows: torch.Tensor, group: int) -> torch.Tensor:
    """Rows as the kernels round them, as float64."""
    groups = rows.double().view(len(rows), -1, group)
    scales = (groups.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-20)
    return ((groups / scales).round() * scales).view(rows.shape)


@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_int8_gives_the_bits_of_onednn_at_every_row_count(number: int, dtype: torch.dtype):
    torch.ops.vramancer.use_isa(number)
    for shape in SHAPES:
        weight = quantise_int8(torch.randn(shape))
        mine, theirs = NativeInt8(weight), OnednnInt8(Int8Weight(weight.codes.clone(), weight.scales))
        for count in ROW_COUNTS:
            rows = torch.randn(count, shape[1]).to(dtype)
            found = mine(rows)
            assert found.shape == (count, shape[0]) and found.dtype == dtype
            assert count == 0 or torch.equal(found, theirs(rows)), (shape, count)


@settings(max_examples=60, deadline=None)
@given(
    outputs=st.integers(1, 70), groups=st.integers(1, 9), group=st.sampled_from([32, 64, 128]),
    count=st.integers(1, 40), number=st.sampled_from(usable() or [PLAIN]), seed=st.integers(0, 1 << 30),
)  # fmt: skip
def test_groups_give_the_exact_product_of_what_was_rounded(
    outputs: int, groups: int, group: int, count: int, number: int, seed: int
):
    torch.ops.vramancer.use_isa(number)
    noise = torch.Generator().manual_seed(seed)
    plain = torch.randn(outputs, groups * group, generator=noise)
    rows = torch.randn(count, groups * group, generator=noise)
    int4, int8 = quantise_int4(plain, group), quantise_int8(plain, group)
    half = Int4Weight(int4.codes, int4.scales_and_offsets.half(), zero=0)  # as a GGUF file has them
    for make, weight in ((NativeInt4, int4), (NativeInt4, half), (NativeInt8Groups, int8)):
        kernel = make(weight)
        found, expected = kernel(rows), rounded(rows, group) @ weight.dequantise(slice(None), torch.float64).t()
        assert (found - expected).abs().max() <= 2e-5 * (1 + expected.abs().max()), (make, weight.format)
        some = slice(count // 3, count // 3 + 5)
        assert torch.equal(kernel(rows[some]), found[some]), "a row feels who else is there"


@pytest.mark.skipif(AVX2 not in usable(), reason="no AVX2")
@pytest.mark.parametrize("count", [1, 7, 40])
def test_instruction_sets_that_fuse_give_the_same_bits(count: int):
    rows = torch.randn(count, 512).bfloat16()
    kernels = [
        NativeInt4(quantise_int4(torch.randn(72, 512))),
        NativeInt8Groups(quantise_int8(torch.randn(72, 512), 32)),
    ]
    for kernel in kernels:
        found = []
        for number in usable()[AVX2:]:
            torch.ops.vramancer.use_isa(number)
            found.append(kernel(rows))
        assert all(torch.equal(found[0], other) for other in found)


@EACH
def test_the_largest_codes_do_not_overflow(number: int):
    torch.ops.vramancer.use_isa(number)
    for sign in (-1, 1):
        weight = Int8Weight(torch.full((33, 8192), sign * 127, dtype=torch.int8), torch.ones(33))
        assert (NativeInt8(weight)(torch.full((3, 8192), 127.0)) == sign * 127 * 127 * 8192).all()
        lowest = Int8Weight(torch.full((33, 64), -128, dtype=torch.int8), torch.ones(33, 2))
        assert (NativeInt8Groups(lowest)(torch.full((3, 64), sign * 127.0)) == sign * -128 * 127 * 64).all()
    zeros = NativeInt8(quantise_int8(torch.zeros(32, 64)))(torch.zeros(2, 64))
    assert (zeros == 0).all()


@EACH
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_what_is_not_finite_stays_in_its_row_and_shows(number: int, wrong: float, dtype: torch.dtype):
    torch.ops.vramancer.use_isa(number)
    rows = torch.randn(14, 128).to(dtype)
    spoilt = rows.clone()
    spoilt[6, 100] = wrong
    others = [row for row in range(14) if row != 6]
    weight = torch.randn(40, 128)
    for kernel in (NativeInt8(quantise_int8(weight)), NativeInt4(quantise_int4(weight))):
        assert torch.equal(kernel(spoilt)[others], kernel(rows)[others])
        assert not torch.isfinite(kernel(spoilt)[6]).any()


def test_tensors_of_the_wrong_sizes_are_refused():
    ops = torch.ops.vramancer
    packed, scales = ops.pack_int8(torch.zeros(64, 64, dtype=torch.int8)), torch.ones(64)
    groups = ops.pack_int8_groups(torch.zeros(64, 64, dtype=torch.int8), torch.ones(64, 2))
    for call in (
        lambda: ops.pack_int8(torch.zeros(64, 65, dtype=torch.int8)),
        lambda: ops.pack_int8(torch.zeros(64, 64)),
        lambda: ops.pack_int8(torch.zeros(64, 64, dtype=torch.int8).t()[:, :32]),
        lambda: ops.pack_int8_groups(torch.zeros(64, 64, dtype=torch.int8), torch.ones(63, 2)),
        lambda: ops.pack_int4(torch.zeros(64, 32, dtype=torch.uint8), torch.ones(2, 64, 2)),
        lambda: ops.pack_int4(torch.zeros(64, 32, dtype=torch.uint8), torch.ones(3, 64, 2).half()),
        lambda: ops.linear_int8(torch.zeros(2, 32), packed, scales),
        lambda: ops.linear_int8(torch.zeros(2, 64), packed, torch.ones(65)),
        lambda: ops.linear_int8(torch.zeros(2, 64, dtype=torch.int32), packed, scales),
        lambda: ops.linear_int8(torch.zeros(64, 2).t(), packed, scales),
        lambda: ops.linear_int8(torch.zeros(64), packed, scales),
        lambda: ops.linear_int8_groups(torch.zeros(2, 64), groups, 65, 32),
        lambda: ops.linear_int8_groups(torch.zeros(2, 64), groups, 64, 64),
        lambda: ops.linear_int8_groups(torch.zeros(2, 64), groups, 64, 0),
        lambda: ops.linear_int4(torch.zeros(2, 64), groups, 64, 32, 8, False),
        lambda: ops.linear_int4(torch.zeros(2, 64), groups, 64, 32, 16, False),
        lambda: ops.use_isa(99),
    ):
        with pytest.raises(RuntimeError, match="vramancer: "):
            call()


def test_a_library_that_is_absent_or_no_library_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path):
    broken = tmp_path / "kernels.so"
    for text in (None, "not a library"):
        if text:
            broken.write_text(text)
        monkeypatch.setattr(native, "LIBRARY", broken)
        native.is_there.cache_clear()
        assert not native.is_there() and native.instruction_set() is None
    monkeypatch.undo()
    native.is_there.cache_clear()
    assert native.is_there()
