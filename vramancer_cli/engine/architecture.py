"""A model's structure without its weights: built on `meta` from what the config declares, and cut to what a node owns.

Knows no family by name. What a family calls its parts stands in its pipeline plan (`base_model_pp_plan`), as an
ordered list of the base model's children. Must never read weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.distributed.pipeline_parallel import PipelineIdentityLayer

from transport.types import LayerRange
from vramancer_cli.engine import attention
from vramancer_cli.engine.checkpoint import Checkpoint
from vramancer_cli.errors import ModelError

_BATCH_WIDE_ROTATIONS = ("dynamic", "longrope")
"""Rotary embeddings that choose their frequencies by the longest sequence in the batch: a request would feel its
neighbours."""

_CONFIG_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    StrictDataclassError,
)
"""What transformers and torch raise for a config that contradicts itself or its family."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Names of the base model's children: what runs before the layers, the layers' container, what runs after."""

    before: tuple[str, ...]
    layers: str
    after: tuple[str, ...]


def build(checkpoint: Checkpoint, dtype: torch.dtype) -> PreTrainedModel:
    """The causal language model on `meta`, in eval mode, with paged attention. Raises ModelError."""
    attention.register()
    config = read_config(checkpoint)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.NAME)
    except _CONFIG_ERRORS as error:
        raise ModelError(f"No text model of the family '{config.model_type}' can be built: {error}") from error
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
    try:
        config = AutoConfig.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    except _CONFIG_ERRORS as error:
        raise ModelError(f"transformers does not accept this config of the family '{family}': {error}") from error
    _refuse_depth(config, len(checkpoint.tensors))
    _refuse_batch_wide_rotation(config)
    return config


def parts_of(model: PreTrainedModel) -> Parts:
    """Raises ModelError where the family declares no pipeline plan with a container of layers."""
    base = base_model(model)
    names = list(base.config.base_model_pp_plan or {})
    containers = [i for i, name in enumerate(names) if isinstance(getattr(base, name, None), torch.nn.ModuleList)]
    if base is model or len(containers) != 1 or not all(hasattr(base, name) for name in names):
        raise ModelError(
            f"The family '{model.config.model_type}' declares no pipeline plan, so it cannot be split into layers.",
            hint="Use a model of another family, such as Llama, Mistral or Qwen.",
        )
    at = containers[0]
    if at == 0 or at + 1 == len(names):
        raise ModelError(f"The pipeline plan of '{model.config.model_type}' names no embedding or no final norm.")
    return Parts(tuple(names[:at]), names[at], tuple(names[at + 1 :]))


def base_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its output head."""
    return model.base_model  # pyright: ignore[reportReturnType]  # torch types every attribute as Tensor | Module


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    return getattr(base_model(model), parts_of(model).layers)


def layer_prefix(model: PreTrainedModel) -> str:
    """What the names of all layers' weights begin with, such as `model.layers.`."""
    return f"{model.base_model_prefix}.{parts_of(model).layers}."


def layer_of(name: str, prefix: str) -> int | None:
    """The layer that the weight `name` belongs to; None for a weight of the ends."""
    found = re.match(rf"{re.escape(prefix)}(\d+)\.", name)
    return int(found[1]) if found else None


def keep(model: PreTrainedModel, layers: LayerRange, *, ends: bool) -> None:
    """Put identities in the place of everything but `layers` and, with `ends`, embedding, final norm and head.

    The container keeps its length, so that what families look up by layer number stays right. Children that the
    pipeline plan does not name (rotary embeddings) have no weights and stay everywhere.
    """
    parts = parts_of(model)
    base = base_model(model)
    container: torch.nn.ModuleList = getattr(base, parts.layers)
    for index in range(len(container)):
        if not layers.start <= index < layers.end:
            container[index] = PipelineIdentityLayer()
    if ends:
        return
    for name in (*parts.before, *parts.after):
        setattr(base, name, PipelineIdentityLayer())
    for name, child in model.named_children():
        if child is not base:
            setattr(model, name, PipelineIdentityLayer())


def fill_buffers(model: PreTrainedModel, device: torch.device) -> None:
    """Compute on `device` what no checkpoint holds: non-persistent buffers such as rotary frequencies.

    Every other module is marked as done first, so that transformers' initialisation touches no loaded weight.
    """
    without = set(model.modules())
    for name, buffer in list(model.named_non_persistent_buffers()):
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
    return declared


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
