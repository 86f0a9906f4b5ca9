"""Which weights of a layer are quantised, and the module that stands in their place.

Found by structure, never by name. Must never read a checkpoint or know a family.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

from transport.types import WeightFormat
from vramancer_cli.engine.quant import quantise
from vramancer_cli.engine.quant_kernels import Kernel, kernel_for
from vramancer_cli.errors import VramancerError
from vramancer_cli.models.quantisation import GROUP, Quantisable

LEAST_ELEMENTS: Final = 1 << 12
"""Smaller weights stay as they are: quantising them would save nothing that counts."""


_MEASURED_ELEMENTS: Final = 1 << 18


class QuantisedLinear(torch.nn.Module):
    """Stands in the place of a Linear: [..., K] in, [..., N] out, in the dtype of what comes in."""

    def __init__(self, weight: torch.Tensor, bias: torch.nn.Parameter | None, quantize: WeightFormat) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self._dtype, self._device = weight.dtype, weight.device
        self._kernel: Kernel | None = kernel_for(quantise(weight, quantize), self._dtype)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self._kernel is None:
            raise VramancerError("The layer has been unloaded.")
        output = self._kernel(hidden.reshape(-1, self.in_features))
        if self.bias is not None:
            output = output.add_(self.bias)
        return output.view(*hidden.shape[:-1], self.out_features)

    @property
    def weight(self) -> torch.Tensor:
        """[N, K], for the few layers that read it themselves: slow, one unit vector for each input."""
        assert self._kernel is not None
        return self._kernel(torch.eye(self.in_features, dtype=self._dtype, device=self._device)).t()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """Packed weights move nowhere; sent to `meta`, they are freed as a parameter's storage would be."""
        if fn(torch.empty(0)).is_meta:
            self._kernel = None
        return super()._apply(fn, recurse)


def quantise_linears(layer: torch.nn.Module, quantize: WeightFormat) -> None:
    """Put QuantisedLinear in the place of every Linear that is worth it, each one's old weight freed at once."""
    for name in linears(layer):
        parent, _, own_name = name.rpartition(".")
        owner = layer.get_submodule(parent)
        linear = owner.get_submodule(own_name)
        assert isinstance(linear, torch.nn.Linear)
        setattr(owner, own_name, QuantisedLinear(linear.weight, linear.bias, quantize))


def quantisable_linears(layer: torch.nn.Module) -> list[Quantisable]:
    """What `quantise_linears` would replace, on `meta` or anywhere."""
    sizes = [(linear.weight.numel(), linear.out_features) for linear in linears(layer).values()]
    return [Quantisable(elements, outputs, elements) for elements, outputs in sizes]


def rounding_errors(layer: torch.nn.Module, quantize: WeightFormat) -> dict[str, float]:
    """By linear layer that `quantise_linears` would replace: what rounding changes of it, as a share of its length.

    Measured on its first rows, `_MEASURED_ELEMENTS` at most.
    """
    return {name: _rounding_error(linear.weight, quantize) for name, linear in linears(layer).items()}


@torch.no_grad()
def _rounding_error(weight: torch.Tensor, quantize: WeightFormat) -> float:
    some = weight[: max(1, _MEASURED_ELEMENTS // weight.shape[1])]
    rounded = quantise(some, quantize).dequantise(slice(None), torch.float32)
    return float((rounded - some).norm() / some.float().norm().clamp_min(torch.finfo(torch.float32).tiny))


def linears(layer: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """By name: every plain Linear whose rows are whole groups, which is neither small nor a router.

    A router tells so by its outputs: one for each of the experts beside it. What derives from Linear may do more
    than multiply, and stays as it is.
    """
    experts = _expert_counts(layer)
    return {
        name: module
        for name, module in layer.named_modules()
        if type(module) is torch.nn.Linear and _is_worth_it(module) and module.out_features not in experts
    }


def _is_worth_it(linear: torch.nn.Linear) -> bool:
    return linear.in_features % GROUP == 0 and linear.weight.numel() >= LEAST_ELEMENTS


def _expert_counts(layer: torch.nn.Module) -> set[int]:
    """Experts stand in one tensor [experts, ...], or in a list of modules."""
    fused = {parameter.shape[0] for parameter in layer.parameters() if parameter.dim() == 3}
    return fused | {len(module) for module in layer.modules() if isinstance(module, torch.nn.ModuleList)}
