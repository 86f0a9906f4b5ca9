"""A whole layer, quantised: its linear layers, and its experts where they stand in one tensor.

Must never read a checkpoint or know a family.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch

from transport.types import WeightFormat
from vramancer_cli.engine.quant_experts import quantisable_experts, quantise_experts
from vramancer_cli.engine.quant_linear import ReadPacked, quantisable_linears, quantise_linears
from vramancer_cli.engine.siblings import Siblings
from vramancer_cli.models.quantisation import Format, Quantisable

_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


@torch.no_grad()  # a graph of how the scales came about would keep every old weight alive
def quantise_layer(
    layer: torch.nn.Module,
    quantize: WeightFormat,
    taken: Mapping[str, ReadPacked] = _NONE,
    siblings: Siblings = (),
) -> None:
    """In place, weight after weight, each old one freed at once. `taken`: those that are not rounded, by name."""
    quantise_linears(layer, quantize, taken, siblings)  # first: a router is told by the experts beside it
    quantise_experts(layer, quantize)


def quantisable(layer: torch.nn.Module, stored: Mapping[str, Format] = _NONE) -> tuple[Quantisable, ...]:
    """What `quantise_layer` could replace, on `meta` or anywhere; `stored`: as the checkpoint has it, by name."""
    return (*quantisable_linears(layer, stored), *quantisable_experts(layer))
