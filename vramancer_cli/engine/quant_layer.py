"""A whole layer, quantised: its linear layers, and its experts where they stand in one tensor.

Must never read a checkpoint or know a family.
"""

from __future__ import annotations

import torch

from transport.types import WeightFormat
from vramancer_cli.engine.quant_experts import quantisable_experts, quantise_experts
from vramancer_cli.engine.quant_linear import quantisable_linears, quantise_linears
from vramancer_cli.models.quantisation import Quantisable


@torch.no_grad()  # a graph of how the scales came about would keep every old weight alive
def quantise_layer(layer: torch.nn.Module, quantize: WeightFormat) -> None:
    """In place, weight after weight, each old one freed at once."""
    quantise_linears(layer, quantize)  # first: a router is told by the experts beside it
    quantise_experts(layer, quantize)


def quantisable(layer: torch.nn.Module) -> Quantisable:
    """What `quantise_layer` would replace, on `meta` or anywhere."""
    return sum([*quantisable_linears(layer), *quantisable_experts(layer)], start=Quantisable())
