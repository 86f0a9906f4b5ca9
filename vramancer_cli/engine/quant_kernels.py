"""Kernels that multiply by a quantised weight: what this machine offers, tried for correctness, timed, and one chosen.

A kernel is used for every row count of a plan, so that a request computes the same alone and beside others. Must never
round a weight or know what a layer is.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

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
    rounded_to,
    row_slices,
)
from vramancer_cli.models.quantisation import INT8, INT8_GROUPED, TRIED_ELEMENTS, Format
from vramancer_cli.telemetry import log

_UNROUNDED_ELEMENTS: Final = {"cpu": 1 << 17}
_UNROUNDED_ELSEWHERE: Final = 1 << 22
"""Weights dequantised at once where no kernel takes them as they are: what a processor's cache holds, else 16 MiB in
float32."""
_TIMED_ROWS: Final = (1, 16)
_TIMED_RUNS: Final = 3
_PACKED_ROWS: Final = 64
"""Outputs that the CPU's int4 layout keeps together."""
_CUDA_LEAST_ROWS: Final = 32
_LARGEST_ERROR: Final = 1e-2
_FALLBACK_HANDICAP: Final = 16
"""The fallback has to be four times as fast at both row counts: int8 kernels give one another's bits, it does not."""

_log = log.get("engine")


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
        slices = row_slices(*weight.shape, step=_PACKED_ROWS)
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


# --- the choice -------------------------------------------------------------------------------------------------------

Make = Callable[..., Kernel]


class Case(NamedTuple):
    """All that a choice depends on. `threads`: of one operation on the CPU."""

    format: Format
    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    threads: int


def kernel_for(weight: QuantisedWeight, dtype: torch.dtype) -> Kernel:
    """The fastest right kernel for activations in `dtype`, over `weight`, which it may repack and drop."""
    case = Case(weight.format, weight.shape, dtype, weight.codes.device, torch.get_num_threads())
    return choose(case)(weight)


def candidates(held: Format, device: torch.device) -> tuple[Make, ...]:
    """What torch may have for the device, the fallback last; whether this machine has it shows when it is tried."""
    int8: dict[str, tuple[Make, ...]] = {"cpu": (OnednnInt8, TorchInt8), "cuda": (TorchInt8,)}
    halves: dict[str, tuple[Make, ...]] = {"cpu": (CpuHalves,), "cuda": (CudaHalves,)}
    int4: dict[str, tuple[Make, ...]] = {"cpu": (CpuInt4,), "cuda": (CudaInt4,)}
    makes = {INT8: int8, INT8_GROUPED: halves}.get(held, int4)
    return (*makes.get(device.type, ()), Dequantise)


@functools.cache
def choose(case: Case) -> Make:
    """Each candidate computes known products; those that are right are timed with 1 and with 16 rows.

    Kept for the process: shards of one plan on one machine decide alike, and a shape is timed once.
    """
    weight = _sample(case)
    made = {make: _try(make, weight, case.dtype) for make in candidates(case.format, case.device)}
    with torch.inference_mode():
        times = {make: _times_s(kernel, case) for make, kernel in made.items() if kernel is not None}
    best = min(times, key=lambda make: math.prod(times[make]) * (_FALLBACK_HANDICAP if make is Dequantise else 1))
    shown = ", ".join(f"{_name(make)} {' '.join(f'{1e3 * s:.3g}' for s in spent)}" for make, spent in times.items())
    shape = "x".join(map(str, case.shape))
    _log.info("kernel chosen", format=str(case.format), shape=shape, kernel=_name(best), ms_for_1_and_16_rows=shown)
    return best


def _try(make: Make, weight: QuantisedWeight, dtype: torch.dtype) -> Kernel | None:
    """The kernel over `weight`, or None where it is absent or wrong. The fallback is right by definition."""
    if make is Dequantise:
        return Dequantise(weight)
    try:
        with torch.inference_mode():
            kernel = make(weight)
            return kernel if is_right(kernel, weight, dtype) else None
    except (RuntimeError, AttributeError):  # what torch raises for a kernel that this build or device lacks
        return None


def is_right(kernel: Kernel, weight: QuantisedWeight, dtype: torch.dtype) -> bool:
    """Whether `kernel` gives what the dequantised weight gives, within 1 % for each row of a small batch."""
    columns, device = weight.shape[1], weight.codes.device
    rows = _noise((3, columns), device).to(dtype)
    rows[1] = 1.0  # the largest sums: where int8 products are added up in 16 bits, they overflow here
    found = kernel(rows).float()
    expected = linear(rows.float(), weight.dequantise(slice(None), torch.float32))
    error = (found - expected).norm(dim=1)
    return bool((error <= _LARGEST_ERROR * expected.norm(dim=1)).all())


def _times_s(kernel: Kernel, case: Case) -> tuple[float, ...]:
    """Seconds for each of _TIMED_ROWS."""
    columns = case.shape[1]
    return tuple(_best_s(kernel, _noise((count, columns), case.device).to(case.dtype)) for count in _TIMED_ROWS)


def _sample(case: Case) -> QuantisedWeight:
    """A weight of the case's shape, or of its first rows where it is large: with as odd a number of them."""
    rows, columns = case.shape
    most = max(_PACKED_ROWS, TRIED_ELEMENTS // columns // _PACKED_ROWS * _PACKED_ROWS)
    some = rows if rows <= most else most + rows % _PACKED_ROWS
    return rounded_to(case.format, _noise((some, columns), case.device))


def _noise(shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    """The same numbers from -1 to 1 each time, whatever else draws any."""
    entries = torch.Generator().manual_seed(11)
    return torch.rand(shape, generator=entries).mul_(2).sub_(1).to(device)


def _best_s(kernel: Kernel, rows: torch.Tensor) -> float:
    kernel(rows)
    return min(_once_s(kernel, rows) for _ in range(_TIMED_RUNS))


def _once_s(kernel: Kernel, rows: torch.Tensor) -> float:
    _wait(rows.device)
    started = time.perf_counter()
    kernel(rows)
    _wait(rows.device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def _name(make: Make) -> str:
    return getattr(make, "__name__", str(make))
