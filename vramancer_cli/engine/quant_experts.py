"""Experts in one tensor, quantised: a plug like attention's, which transformers' expert modules call.

What such a module has is the contract of transformers' experts interface (`use_experts_implementation`): tensors
[experts, outputs, inputs], or transposed, named below, and flags for gate, bias and norm. Must never know a family.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from transport.types import WeightFormat
from vramancer_cli.engine.quant import quantise
from vramancer_cli.engine.quant_linear import QuantisedLinear
from vramancer_cli.models.quantisation import GROUP, Quantisable, format_of

NAME: Final = "vramancer_quantised"
_FLAGS: Final = ("has_gate", "has_bias", "has_post_expert_norm", "is_transposed", "config")
_PROJECTIONS: Final = ("gate_up_proj", "up_proj", "down_proj")


def quantise_experts(layer: torch.nn.Module, quantize: WeightFormat) -> None:
    """Put a list of QuantisedLinear, one for each expert, in the place of every tensor of experts."""
    for module, name, (_, _, inputs) in _found(layer):
        if format_of(quantize, inputs) is None:
            continue
        tensor: torch.Tensor = getattr(module, name)
        each = [expert.t() if module.is_transposed else expert for expert in tensor]
        experts = torch.nn.ModuleList(QuantisedLinear(quantise(e, quantize), None, e.dtype) for e in each)
        delattr(module, name)
        setattr(module, name, experts)
        ALL_EXPERTS_FUNCTIONS.register(NAME, _from_module)
        module.config._experts_implementation = NAME


def quantisable_experts(layer: torch.nn.Module) -> list[Quantisable]:
    """What `quantise_experts` would replace, on `meta` or anywhere."""
    shapes = [shape for _, _, shape in _found(layer)]
    return [Quantisable(outputs, inputs, count) for count, outputs, inputs in shapes]


def _found(layer: torch.nn.Module) -> Iterator[tuple[Any, str, tuple[int, int, int]]]:
    """Each module, tensor name and [experts, outputs, inputs] whose rows are whole groups."""
    for module in list(layer.modules()):
        if not all(hasattr(module, flag) for flag in _FLAGS):
            continue
        for name in _PROJECTIONS:
            tensor = module._parameters.get(name)
            if tensor is not None and tensor.dim() == 3:
                count, outputs, inputs = tensor.transpose(1, 2).shape if module.is_transposed else tensor.shape
                if inputs % GROUP == 0:
                    yield module, name, (count, outputs, inputs)


def _from_module(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Hidden states [T, hidden], experts and their shares [T, k] in; [T, hidden] out. Named as the interface has it.

    Each expert sees its rows at once; a token's k results are added in their own order, whoever else is in the batch.
    """
    results = hidden_states.new_zeros(*top_k_index.shape, hidden_states.shape[-1])
    for expert in top_k_index.unique().tolist():
        if expert < module.num_experts:  # beyond: transformers' mark for an expert that another device holds
            tokens, places = torch.where(top_k_index == expert)
            result = _one_expert(module, hidden_states[tokens], expert)
            results[tokens, places] = (result * top_k_weights[tokens, places, None]).to(results.dtype)
    return results.sum(1)


def _one_expert(module: Any, rows: torch.Tensor, expert: int) -> torch.Tensor:
    if module.has_gate:
        inner = module._apply_gate(_product(module, "gate_up_proj", rows, expert))
    else:
        inner = module.act_fn(_product(module, "up_proj", rows, expert))
    output = _product(module, "down_proj", inner, expert)
    return module.post_expert_norm(output) if module.has_post_expert_norm else output


def _product(module: Any, name: str, rows: torch.Tensor, expert: int) -> torch.Tensor:
    weight = getattr(module, name)[expert]
    if isinstance(weight, QuantisedLinear):
        output = weight(rows)
    else:  # rows that are not whole groups
        output = rows @ (weight if module.is_transposed else weight.t())
    return output + getattr(module, f"{name}_bias")[expert] if module.has_bias else output
