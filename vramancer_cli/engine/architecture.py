"""A model's structure without its weights: built on `meta` from what the config declares, and cut to what a node owns.

Knows no family by name. What a family calls its parts stands in its pipeline plan (`base_model_pp_plan`), as an
ordered list of the base model's children. Must never read weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.distributed.pipeline_parallel import PipelineIdentityLayer

from transport.types import LayerRange
from vramancer_cli.engine import attention, families
from vramancer_cli.engine.checkpoint import Checkpoint
from vramancer_cli.engine.seam import Seams, SplitModel, StandIn
from vramancer_cli.errors import ModelError
from vramancer_cli.models.folder import one_line

_BATCH_WIDE_ROTATIONS = ("dynamic", "longrope")
"""Rotary embeddings that choose their frequencies by the longest sequence in the batch: a request would feel its
neighbours."""

MAX_CONTEXT_TOKENS: Final = 2**27
_MOST_OF_ANYTHING: Final = 10_000
"""Layers, heads, experts and the like, where the stored tensors do not show more."""
_MOST_EXPERT_MODULES: Final = 50_000
_MAX_DEPTH: Final = 32
_MAX_TABLE_BYTES: Final = 256 << 20
"""Tables that are computed and not stored: rotary frequencies, and for some families one row per position."""

WHOLE: Final = "Run it whole on one node, with a program made for one machine, or use a model of another family."
"""What is left to do with a family that cannot be split."""

_COUNTS: Final = re.compile(r"^(num|n)_|layer|expert|head|block|depth")
_EXPERTS: Final = re.compile(r"^(num|n)_(\w+_)?experts$")
_LENGTHS: Final = re.compile(r"position|seq_len|n_ctx|context_length")


def build(checkpoint: Checkpoint, dtype: torch.dtype, *, ragged: bool = True) -> PreTrainedModel:
    """The causal language model on `meta`, in eval mode. Raises ModelError.

    `ragged`: with our attention, which takes several sequences in one row; else with the family's own.
    """
    attention.register()
    config = read_config(checkpoint)
    try:
        with torch.device("meta"):
            chosen = {"attn_implementation": attention.NAME} if ragged else {}
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, **chosen)
    except Exception as error:  # whatever transformers and torch make of a config that contradicts itself
        sentence = f"No text model of the family '{one_line(config.model_type)}' can be built: {one_line(error)}."
        raise ModelError(sentence) from error
    return model.eval().requires_grad_(False)


def read_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """The config as transformers understands it. Raises ModelError for what cannot be run."""
    family = checkpoint.config.get("model_type")
    if not isinstance(family, str):
        raise ModelError("config.json does not say which family the model is of (model_type).")
    if checkpoint.config.get("quantization_config"):
        raise ModelError(
            "The checkpoint is quantised, which VRAMancer cannot load yet.",
            hint="Use a version of the model that is stored in float32, float16 or bfloat16.",
        )
    _refuse_absurd(checkpoint)
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever transformers makes of a stranger's config
        sentence = f"transformers does not accept this config of the family '{one_line(family)}': {one_line(error)}."
        raise ModelError(sentence) from error
    _refuse_depth(config, len(checkpoint.tensors))
    _refuse_batch_wide_rotation(config)
    if reason := families.why_whole(config.get_text_config()):
        raise ModelError(f"This model of the family '{family}' cannot be split: {reason}.", hint=WHOLE)
    return config


def base_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its output head."""
    return model.base_model  # pyright: ignore[reportReturnType]  # torch types every attribute as Tensor | Module


def container_name(model: PreTrainedModel) -> str:
    """Where the layers are in the base model: what the pipeline plan says, else the only list of that many modules.

    Raises ModelError where there is no such list.
    """
    base = base_model(model)
    lists = {name: module for name, module in base.named_modules() if isinstance(module, torch.nn.ModuleList)}
    planned = [name for name in base.config.base_model_pp_plan or {} if name in lists]
    count: Any = getattr(base.config.get_text_config(), "num_hidden_layers", None)
    as_many = [name for name, module in lists.items() if len(module) == count]
    found = planned or [name for name in as_many if not any(name.startswith(f"{other}.") for other in as_many)]
    if base is model or len(found) != 1:
        raise ModelError(
            f"The family '{model.config.model_type}' cannot be split into layers: they are not one list of modules.",
            hint=WHOLE,
        )
    return found[0]


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    return base_model(model).get_submodule(container_name(model))  # pyright: ignore[reportReturnType]


def layer_prefix(model: PreTrainedModel) -> str:
    """What the names of all layers' weights begin with, such as `model.layers.`."""
    return f"{model.base_model_prefix}.{container_name(model)}."


def outside(model: PreTrainedModel) -> Iterator[tuple[str, torch.nn.Module]]:
    """The base model's modules that have weights and are no layers, by name: embeddings, norms, projections.

    What has no weights (rotary embeddings) is not among them: every stage has its own.
    """
    yield from _outside(base_model(model), "", container_name(model))


def _outside(module: torch.nn.Module, prefix: str, container: str) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, child in module.named_children():
        path = prefix + name
        if path == container or not child.state_dict():
            continue
        holds_more = isinstance(child, (torch.nn.ModuleList, torch.nn.ModuleDict)) or container.startswith(f"{path}.")
        yield from _outside(child, f"{path}.", container) if holds_more else ((path, child),)


def layer_of(name: str, prefix: str) -> int | None:
    """The layer that the weight `name` belongs to; None for a weight of the ends."""
    found = re.match(rf"{re.escape(prefix)}(\d+)\.", name)
    return int(found[1]) if found else None


def keep_layers(model: PreTrainedModel, seams: Seams, layers: LayerRange) -> SplitModel:
    """Leave only `layers` in `model`, with stand-ins for what others hold.

    The container keeps its length, so that what families look up by layer number stays right.
    """
    base = base_model(model)
    for name, _ in list(outside(model)):
        base.set_submodule(name, _stand_in(model, seams, name))
    for name, child in model.named_children():
        if child is not base:
            setattr(model, name, PipelineIdentityLayer())
    return SplitModel(model, layers_of(model), seams, layers)


def keep_ends(model: PreTrainedModel, seams: Seams) -> SplitModel:
    """Leave everything in `model` but its layers."""
    return SplitModel(model, layers_of(model), seams, LayerRange(0, 0))


def layers_are_apart(model: PreTrainedModel) -> bool:
    """Whether no weight belongs to several layers, so that each layer can be moved by itself. Model on `meta`."""
    prefix = layer_prefix(model)
    tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
    weights = [weight for layer in layers_of(model) for weight in layer.parameters()]
    return len(weights) == len(set(weights)) and not any(layer_of(name, prefix) is not None for name in tied)


def _stand_in(model: PreTrainedModel, seams: Seams, name: str) -> torch.nn.Module:
    """What is never called before the layers needs none."""
    if name not in seams.stand_ins:
        return PipelineIdentityLayer()
    return StandIn(*seams.stand_ins[name], model.dtype)


def fill_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute on `device` what no checkpoint holds: non-persistent buffers such as rotary frequencies, if on `meta`.

    Every other module is marked as done first, so that transformers' initialisation touches no loaded weight.
    """
    without = set(model.modules())
    buffers = [(name, buffer) for name, buffer in model.named_non_persistent_buffers() if buffer.is_meta]
    if sum(buffer.nbytes for _, buffer in buffers) > _MAX_TABLE_BYTES:
        raise ModelError("config.json declares sizes whose tables alone would fill the memory.")
    for name, buffer in buffers:
        owner_name, _, own_name = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        owner.register_buffer(own_name, torch.empty_like(buffer, device=device), persistent=False)
        without.discard(owner)
    for module in without:
        module._is_hf_initialized = True  # pyright: ignore[reportArgumentType]  # the flag that transformers looks at
    model.initialize_weights()


def free(model: PreTrainedModel) -> None:
    """Drop all tensors at once, without waiting for whoever still refers to the model."""
    torch.nn.Module.to(model, "meta")


def context_tokens(config: PretrainedConfig) -> int:
    """The longest context that the config declares, in tokens. Raises ModelError."""
    declared: Any = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(declared, int) or declared <= 0:
        raise ModelError("config.json does not say how long a context the model was made for.")
    if declared > MAX_CONTEXT_TOKENS:
        raise ModelError(f"config.json says a context of {_short(declared)} tokens, which no model has.")
    return declared


def _refuse_absurd(checkpoint: Checkpoint) -> None:
    """Before transformers reads the config: it builds lists, and then modules, as long as the config says.

    What a real model has many of shows in its tensors: by their number, or as one of their dimensions.
    """
    largest = max((size for tensor in checkpoint.tensors.values() for size in tensor.shape), default=0)
    most = max(_MOST_OF_ANYTHING, len(checkpoint.tensors), largest)
    layers = experts = 1
    for name, value in _numbers(checkpoint.config):
        _check_number(name, value, most)
        if isinstance(value, int):
            layers = max(layers, value) if "layers" in name else layers
            experts = max(experts, value) if _EXPERTS.search(name) else experts
    if min(layers, len(checkpoint.tensors)) * experts > _MOST_EXPERT_MODULES and experts > 1:
        raise ModelError(f"config.json says {experts} experts in each of {layers} layers, which is no model's size.")


def _check_number(name: str, value: int | float, most: int) -> None:
    if isinstance(value, float):
        refused = math.isnan(value) or ("rope" in name and math.isinf(value))
    else:
        limit = MAX_CONTEXT_TOKENS if _LENGTHS.search(name) else most if _COUNTS.search(name) else None
        refused = limit is not None and value > limit
    if refused or ("theta" in name and value <= 0):
        raise ModelError(f"config.json says {_short(value)} for '{one_line(name)}', which no model has.")


def _numbers(part: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, int | float]]:
    """Every number of a config with the key that it stands under. Raises ModelError for a config that is too deep."""
    if depth > _MAX_DEPTH:
        raise ModelError("config.json nests its values too deep.")
    if isinstance(part, dict):
        for key, value in part.items():
            yield from _numbers(value, f"{name}.{key}" if "rope" in name else key, depth + 1)
    elif isinstance(part, list):
        for value in part:
            yield from _numbers(value, name, depth + 1)
    elif isinstance(part, (int, float)):
        yield name, part


def _short(value: int | float) -> str:
    return "a huge number" if isinstance(value, int) and value.bit_length() > 64 else str(value)


def _refuse_depth(config: PretrainedConfig, tensor_count: int) -> None:
    """Every layer has a tensor of its own; a config that lies about their number would be built at any cost."""
    layer_count: Any = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(layer_count, int) and not 1 <= layer_count <= tensor_count:
        raise ModelError(f"config.json says {layer_count} layers, and the checkpoint holds {tensor_count} tensors.")


def _refuse_batch_wide_rotation(config: PretrainedConfig) -> None:
    declared: Any = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [part.get("rope_type") for part in (declared, *declared.values()) if isinstance(part, dict)]
    for kind in kinds:
        if kind in _BATCH_WIDE_ROTATIONS:
            raise ModelError(f"The model uses '{kind}' positions, which VRAMancer cannot compute per request yet.")
