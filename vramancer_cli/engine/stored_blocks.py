"""Which of a model's linear weights a checkpoint has in blocks that can be held as they are, told without reading any.

Must never know a file format or round a weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial

import torch

from transport.types import WeightFormat
from vramancer_cli.engine.quant import QuantisedWeight
from vramancer_cli.engine.quant_linear import ReadPacked, linears
from vramancer_cli.engine.stored_tensor import StoredTensor
from vramancer_cli.models.quantisation import Format, format_of


def packed_linears(
    layer: torch.nn.Module, prefix: str, tensors: Mapping[str, StoredTensor], places: Mapping[str, str]
) -> dict[str, StoredTensor]:
    """By name in `layer`: each Linear that could be quantised, and the one tensor that is its weight, and is packed.

    `prefix`: what the layer's weights begin with in the model; `places`: name in the checkpoint -> in the model.
    """
    found = linears(layer)
    shared = Counter(places.values())
    stored = {target: tensors[name] for name, target in places.items() if shared[target] == 1}
    pairs = ((name, linear, stored.get(f"{prefix}{name}.weight")) for name, linear in found.items())
    return {
        name: tensor
        for name, linear, tensor in pairs
        if tensor is not None and tensor.shape == tuple(linear.weight.shape) and tensor.packed_format
    }


def formats_of(stored: Mapping[str, StoredTensor]) -> dict[str, Format]:
    """By name, those of `packed_linears`."""
    formats = {name: tensor.packed_format for name, tensor in stored.items()}
    return {name: held for name, held in formats.items() if held is not None}


def taken_over(stored: Mapping[str, StoredTensor], quantize: WeightFormat) -> dict[str, StoredTensor]:
    """Those of `packed_linears` that a plan of that format holds as they are."""
    formats = formats_of(stored).items()
    kept = {name for name, held in formats if format_of(quantize, stored[name].shape[1], held) == held}
    return {name: stored[name] for name in kept}


def readers(stored: Mapping[str, StoredTensor], device: torch.device) -> dict[str, ReadPacked]:
    """How each is read to `device`, when its turn has come."""
    return {name: partial(_read, tensor, device) for name, tensor in stored.items()}


def _read(tensor: StoredTensor, device: torch.device) -> QuantisedWeight:
    weight = tensor.read_packed().to(device)
    tensor.noted(tensor.size_bytes)
    return weight
