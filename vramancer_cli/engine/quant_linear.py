"""Which weights of a layer are quantised, and the module that stands in their place.

Found by structure, never by name. Must never read a checkpoint or know a family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch

from transport.types import WeightFormat
from vramancer_cli.engine.quant import QuantisedWeight, may_join, quantise
from vramancer_cli.engine.quant_choice import kernel_for
from vramancer_cli.engine.quant_kernels import Kernel
from vramancer_cli.engine.siblings import Siblings, shared_linears
from vramancer_cli.errors import VramancerError
from vramancer_cli.models.quantisation import GROUP, Format, Quantisable, format_of

LEAST_ELEMENTS: Final = 1 << 12
"""Smaller weights stay as they are: quantising them would save nothing that counts."""

ReadPacked = Callable[[], QuantisedWeight]
"""Reads a weight as a checkpoint has it packed, to the device where it belongs. Raises ModelError."""


class QuantisedLinear(torch.nn.Module):
    """Stands in the place of a Linear: [..., K] in, [..., N] out, in the dtype of what comes in."""

    def __init__(self, weight: QuantisedWeight, bias: torch.nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self._dtype, self._device = dtype, weight.codes.device
        self._kernel: Kernel | None = kernel_for(weight, dtype)

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


def quantise_linears(
    layer: torch.nn.Module, quantize: WeightFormat, taken: Mapping[str, ReadPacked], siblings: Siblings = ()
) -> None:
    """Put a quantised one in the place of every Linear that is worth it, each one's old weight freed at once.

    `taken`: by name, those whose weights are taken over as they are stored; the others are rounded, where `quantize`
    rounds. `siblings` share a product where they are held alike.
    """
    for names in _together(linears(layer), siblings):
        found: dict[str, Any] = {name: layer.get_submodule(name) for name in names}
        biases = {name: linear.bias for name, linear in found.items()}
        dtypes = {linear.weight.dtype for linear in found.values()}
        held = {name: weight for name in names if (weight := _quantised(found[name], quantize, taken.get(name)))}
        for name, module in _stand_ins(held, biases, dtypes.pop()).items():
            layer.set_submodule(name, module)


def _quantised(linear: Any, quantize: WeightFormat, read: ReadPacked | None) -> QuantisedWeight | None:
    """The weight as it is to be held, the old one freed; None where it stays."""
    if read is None and format_of(quantize, linear.in_features) is None:
        return None
    held = read() if read is not None else quantise(linear.weight, quantize)
    linear.weight = None
    return held


def _stand_ins(held: dict[str, QuantisedWeight], biases: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    if len(held) > 1 and may_join(list(held.values())):
        return shared_linears(held, biases, dtype)
    return {name: QuantisedLinear(weight, biases[name], dtype) for name, weight in held.items()}


def _together(found: Iterable[str], siblings: Siblings) -> list[tuple[str, ...]]:
    """All names, those that belong together in one tuple."""
    names = list(found)
    groups = [tuple(name for name in group if name in names) for group in siblings]
    grouped = {name for group in groups for name in group}
    return [group for group in groups if group] + [(name,) for name in names if name not in grouped]


def quantisable_linears(layer: torch.nn.Module, stored: Mapping[str, Format]) -> list[Quantisable]:
    """What `quantise_linears` would replace, on `meta` or anywhere; `stored`: as the checkpoint has them, by name."""
    found = linears(layer).items()
    return [Quantisable(linear.out_features, linear.in_features, 1, stored.get(name)) for name, linear in found]


def linears(layer: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """By name: every plain Linear whose rows are whole groups, which is neither small nor a router.

    A router tells so by its outputs: one for each of the experts beside it. What derives from Linear may do more
    than multiply, and stays as it is.
    """
    experts = _expert_counts(layer)
    return {
        name: module
        for name, module in layer.named_modules()
        if type(module) is torch.nn.Linear and is_worth_it(module) and module.out_features not in experts
    }


def is_worth_it(linear: torch.nn.Linear) -> bool:
    """Whether its rows are whole groups, and it is not small."""
    return linear.in_features % GROUP == 0 and linear.weight.numel() >= LEAST_ELEMENTS


def _expert_counts(layer: torch.nn.Module) -> set[int]:
    """Experts stand in one tensor [experts, ...], or in a list of modules."""
    fused = {parameter.shape[0] for parameter in layer.parameters() if parameter.dim() == 3}
    return fused | {len(module) for module in layer.modules() if isinstance(module, torch.nn.ModuleList)}
