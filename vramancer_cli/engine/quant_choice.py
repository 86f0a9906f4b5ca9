"""Which kernel multiplies a quantised weight: what this machine offers, tried for correctness, timed, and one chosen.

A kernel is used for every row count of a plan, so that a request computes the same alone and beside others. Must never
know what a layer is.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from torch.nn.functional import linear

from vramancer_cli.engine.quant import QuantisedWeight, rounded_to
from vramancer_cli.engine.quant_kernels import (
    PACKED_ROWS,
    CpuHalves,
    CpuInt4,
    CudaHalves,
    CudaInt4,
    Dequantise,
    Kernel,
    OnednnInt8,
    TorchInt8,
)
from vramancer_cli.engine.quant_native import native_kernels
from vramancer_cli.models.quantisation import INT8, INT8_GROUPED, TRIED_ELEMENTS, Format
from vramancer_cli.telemetry import log

_TIMED_ROWS: Final = (1, 16)
_TIMED_RUNS: Final = 3
_LARGEST_ERROR: Final = 1e-2
_FALLBACK_HANDICAP: Final = 16
"""The fallback has to be four times as fast at both row counts: int8 kernels give one another's bits, it does not."""

_log = log.get("engine")

Make = Callable[..., Kernel]


class Case(NamedTuple):
    """All that a choice depends on. `threads`: of one operation on the CPU."""

    format: Format
    shape: tuple[int, int]
    dtype: torch.dtype
    device: torch.device
    threads: int


def kernel_for(weight: QuantisedWeight, dtype: torch.dtype) -> Kernel:
    """The fastest right kernel for activations in `dtype`, over `weight`, which it may repack and drop.

    The fast ones for groups compute in bfloat16: in float32, what a checkpoint holds is multiplied as it stands there.
    """
    if dtype == torch.float32 and weight.has_float16_scales:
        return Dequantise(weight)
    case = Case(weight.format, weight.shape, dtype, weight.codes.device, torch.get_num_threads())
    return choose(case)(weight)


def candidates(held: Format, device: torch.device) -> tuple[Make, ...]:
    """What there may be for the device, the fallback last; whether this machine has it shows when it is tried."""
    int8: dict[str, tuple[Make, ...]] = {"cpu": (OnednnInt8, TorchInt8), "cuda": (TorchInt8,)}
    halves: dict[str, tuple[Make, ...]] = {"cpu": (CpuHalves,), "cuda": (CudaHalves,)}
    int4: dict[str, tuple[Make, ...]] = {"cpu": (CpuInt4,), "cuda": (CudaInt4,)}
    makes = {INT8: int8, INT8_GROUPED: halves}.get(held, int4)
    return (*native_kernels(held, device), *makes.get(device.type, ()), Dequantise)


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
    most = max(PACKED_ROWS, TRIED_ELEMENTS // columns // PACKED_ROWS * PACKED_ROWS)
    some = rows if rows <= most else most + rows % PACKED_ROWS
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
