"""What it costs that weights which a checkpoint has packed are rounded a second time: measured while they load, logged.

Must never change a weight.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Final

import torch

from transport.types import WeightFormat
from vramancer_cli.engine.quant import quantise
from vramancer_cli.engine.quant_linear import linears
from vramancer_cli.engine.stored_tensor import StoredTensor
from vramancer_cli.models.quantisation import format_of
from vramancer_cli.telemetry import log

_MEASURED_ELEMENTS: Final = 1 << 18

_log = log.get("engine")


class Rounding:
    """Collects the errors of one load in a plan's format: by weight, as a share of its length."""

    def __init__(self, quantize: WeightFormat) -> None:
        self._quantize: WeightFormat = quantize
        self._stored: set[str] = set()
        self._taken: set[str] = set()
        self._errors: dict[str, float] = {}

    def note(
        self, module: torch.nn.Module, layer: int, group: Iterable[StoredTensor], taken: dict[str, StoredTensor]
    ) -> None:
        """Before a layer is quantised: its tensors, and by name those that are taken over."""
        self._taken |= {tensor.packed_as for tensor in taken.values()}
        left = {tensor.packed_as for tensor in group if tensor not in taken.values()} - {""}
        if left:
            self._stored |= left
            self._errors |= {f"{layer}.{name}": e for name, e in _errors(module, self._quantize, taken).items()}

    def log(self) -> None:
        """One line for what is held as stored, one for what was rounded a second time; none where nothing was."""
        if self._taken:
            _log.info("weights held as they are stored", stored=sorted(self._taken))
        if self._errors:
            worst = max(self._errors, key=self._errors.__getitem__)
            _log.info(
                "weights rounded a second time",
                stored=sorted(self._stored),
                held=self._quantize,
                worst_error=f"{self._errors[worst]:.2%}",
                worst_weight=worst,
                mean_error=f"{sum(self._errors.values()) / len(self._errors):.2%}",
            )


def _errors(layer: torch.nn.Module, quantize: WeightFormat, taken: Container[str]) -> dict[str, float]:
    """By linear layer that is rounded: what that changes of it, measured on its first rows."""
    rounded = {name: linear for name, linear in linears(layer).items() if name not in taken}
    return {
        name: _error(linear.weight, quantize)
        for name, linear in rounded.items()
        if format_of(quantize, linear.in_features) is not None
    }


@torch.no_grad()
def _error(weight: torch.Tensor, quantize: WeightFormat) -> float:
    some = weight[: max(1, _MEASURED_ELEMENTS // weight.shape[1])]
    rounded = quantise(some, quantize).dequantise(slice(None), torch.float32)
    return float((rounded - some).norm() / some.float().norm().clamp_min(torch.finfo(torch.float32).tiny))
