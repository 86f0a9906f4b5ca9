"""One kernel is chosen of those that are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.vramancer_cli.engine.test_quant_kernels import CPU, EVERY_KERNEL, FORMATS, INT8_KERNELS, noise, weight
from vramancer_cli.engine import quant_choice
from vramancer_cli.engine.quant import rounded_to
from vramancer_cli.engine.quant_choice import Case, Make, candidates, choose, is_right, kernel_for
from vramancer_cli.engine.quant_kernels import (
    CudaHalves,
    CudaInt4,
    Dequantise,
    OnednnInt8,
)
from vramancer_cli.models.quantisation import INT4, INT8, INT8_GROUPED, Format


def test_the_choice_is_one_that_was_right_and_is_kept():
    case = Case(INT8, (256, 512), torch.float32, CPU, torch.get_num_threads())
    assert choose(case) in INT8_KERNELS
    assert choose(case) is choose(case)
    assert choose.cache_info().hits >= 1


def test_a_shape_that_no_kernel_takes_falls_back(monkeypatch: pytest.MonkeyPatch):
    """torch's int4 layout has outputs by 16; our own takes any number."""
    monkeypatch.setattr(quant_choice, "native_kernels", lambda *_: ())
    assert isinstance(kernel_for(rounded_to(INT4, noise(200, 64)), torch.float32), Dequantise)


class Wrong(OnednnInt8):
    """A kernel with one output that is wrong, as a machine with a fault in its int8 products would have."""

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        output = super().__call__(rows)
        output[:, 3] = 1000
        return output


def absent(_quantised: Any) -> Any:
    return torch.ops.aten._no_such_kernel


def broken(_quantised: Any) -> Any:
    raise NotImplementedError("not compiled for this processor")


@pytest.mark.parametrize("make", [Wrong, absent, broken])
def test_a_kernel_that_is_wrong_or_absent_is_never_chosen(monkeypatch: pytest.MonkeyPatch, make: Make):
    monkeypatch.setattr(quant_choice, "candidates", lambda *_: (make, Dequantise))
    choose.cache_clear()
    assert isinstance(kernel_for(weight(INT8), torch.float32), Dequantise)
    choose.cache_clear()


@EVERY_KERNEL
def test_a_right_kernel_passes_the_trial(make: Make, held: Format):
    quantised = weight(held)
    assert is_right(make(quantised), quantised, torch.bfloat16)
    another = rounded_to(held, noise(208, 512, seed=2))
    assert not is_right(make(another), quantised, torch.bfloat16)


def test_other_devices_have_the_fallback_at_least():
    for kind in ("mps", "xpu", "cuda"):
        for held in FORMATS:
            assert candidates(held, torch.device(kind))[-1] is Dequantise
    assert candidates(INT4, torch.device("cuda")) == (CudaInt4, Dequantise)
    assert candidates(INT8_GROUPED, torch.device("cuda")) == (CudaHalves, Dequantise)
