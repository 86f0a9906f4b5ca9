"""The output head, quantised: for one stream its weights are read for every token, like those of the layers.

Only where it is a weight of its own: a head that is tied to the embedding stays in the plan's dtype, because rows of
the embedding are looked up by number. Must never read a checkpoint or know a family.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from transport.types import WeightFormat
from vramancer_cli.engine.quant import rounded_to
from vramancer_cli.engine.quant_linear import QuantisedLinear, is_worth_it
from vramancer_cli.models.quantisation import Quantisable, head_format


def quantisable_head(model: PreTrainedModel) -> Quantisable | None:
    """What `quantise_head` would replace, on `meta` or anywhere."""
    head = _head(model)
    return None if head is None else Quantisable(head[1].out_features, head[1].in_features)


@torch.no_grad()
def quantise_head(model: PreTrainedModel, quantize: WeightFormat) -> None:
    """In place, the old weight freed."""
    head = _head(model)
    held = None if head is None else head_format(quantize)
    if head is None or held is None:
        return
    name, linear = head
    parent, _, own_name = name.rpartition(".")
    weight = rounded_to(held, linear.weight)
    setattr(model.get_submodule(parent), own_name, QuantisedLinear(weight, linear.bias, linear.weight.dtype))


def _head(model: PreTrainedModel) -> tuple[str, torch.nn.Linear] | None:
    """Its name and module, where the model still has it and shares it with nothing."""
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is head and type(module) is torch.nn.Linear and f"{name}.weight" not in tied:
            return (name, module) if is_worth_it(module) else None
    return None
