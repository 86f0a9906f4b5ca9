"""From checkpoint to model: the facts that placement needs, and the owned tensors, loaded where they belong.

Renaming and fusing of tensors is transformers' own (`core_model_loading`); which bytes are read is decided here.
Must never know a family by name.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Final

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as transformers_logging

from transport.messages import ModelRef
from transport.types import WeightFormat
from vramancer_cli.engine import architecture
from vramancer_cli.engine.checkpoint import Checkpoint, open_checkpoint
from vramancer_cli.engine.devices import empty_cache
from vramancer_cli.engine.quant_head import quantisable_head, quantise_head
from vramancer_cli.engine.quant_layer import quantisable, quantise_layer
from vramancer_cli.engine.read_progress import Progress, ReadProgress
from vramancer_cli.engine.rounding import Rounding
from vramancer_cli.engine.stored_blocks import formats_of, packed_linears, readers, taken_over
from vramancer_cli.engine.stored_tensor import StoredTensor
from vramancer_cli.engine.tensors import DTYPES
from vramancer_cli.engine.trace import Trace, trace_layers
from vramancer_cli.errors import ModelError
from vramancer_cli.models.facts import ModelFacts, WindowElements
from vramancer_cli.models.quantisation import Quantisable, head_saved_bytes, saved_bytes

HEAD_COPIES: Final = 6
"""Float32 vectors of vocabulary length alive while one row is sampled: logits, log-probabilities, shares, and sorted
shares with their indices (8 bytes each)."""
HEAD_ROW_TOKENS: Final = 64
"""The head takes rows in turns as the workspace allows; one row has to fit into the workspace of this many tokens."""


def digest(folder: Path) -> str:
    """ModelRef.digest of the checkpoint in `folder`. Raises ModelError."""
    return open_checkpoint(folder).digest


def model_facts(folder: Path, ref: ModelRef) -> ModelFacts:
    """Sizes read off the model on `meta`, and off a dry run of its layers; no weights are read.

    `workspace_elements_per_token` is the peak of that dry run (all intermediate values of one layer that are alive
    at once, plus the residual), or the head's share if that is larger. Raises ModelError.
    """
    checkpoint = open_checkpoint(folder)
    trace = trace_layers(checkpoint)
    model = architecture.build(checkpoint, torch.float32, ragged=trace.ragged)
    config = model.config.get_text_config()
    by_layer = parameters_by_layer(model)
    layer_count = len(architecture.layers_of(model))
    layer_quantisable = _quantisable(model, checkpoint)
    owned_tensors(model, checkpoint)
    head_elements = -(-HEAD_COPIES * config.vocab_size // HEAD_ROW_TOKENS)
    return ModelFacts(
        ref=ref,
        family=model.config.model_type,
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        context_tokens=architecture.context_tokens(config),
        checkpoint_dtype=_checkpoint_dtype(checkpoint),
        layer_parameters=tuple(by_layer[index] for index in range(layer_count)),
        ends_parameters=by_layer[None],
        kv_elements_per_token=tuple(trace.kv_elements(index) for index in range(layer_count)),
        kv_vectors_per_token=tuple(trace.kv_vectors(index) for index in range(layer_count)) if trace.ragged else (),
        windows=tuple(_window(trace, layer_count, tokens) for tokens in trace.window_sizes),
        state_elements_per_sequence=_states(trace, layer_count),
        workspace_elements_per_token=max(trace.live_elements, head_elements),
        layer_quantisable=layer_quantisable,
        head=quantisable_head(model),
    )


def parameters_by_layer(model: PreTrainedModel) -> Counter[int | None]:
    """Elements by layer number; under None those of the ends, tied weights once."""
    prefix = architecture.layer_prefix(model)
    tied = model.all_tied_weights_keys
    counts: Counter[int | None] = Counter()
    for name, tensor in model.state_dict().items():
        if name not in tied:
            counts[architecture.layer_of(name, prefix)] += tensor.numel()
    return counts


def weights_bytes(model: PreTrainedModel, quantize: WeightFormat = "none", checkpoint: Checkpoint | None = None) -> int:
    """The bytes of the weights that `model`, on meta, still has: in the dtypes that it was built with, or quantised.

    `checkpoint`: where they come from, which may have some of them in blocks that are taken over.
    """
    tied = model.all_tied_weights_keys
    plain_bytes = sum(tensor.nbytes for name, tensor in model.state_dict().items() if name not in tied)
    if quantize == "none":
        return plain_bytes
    dtype = next(name for name, kind in DTYPES.items() if kind == model.dtype)
    saved = sum(saved_bytes(parts, quantize, dtype) for parts in _quantisable(model, checkpoint))
    return plain_bytes - saved - head_saved_bytes(quantisable_head(model), quantize, dtype)


def _quantisable(model: PreTrainedModel, checkpoint: Checkpoint | None) -> tuple[tuple[Quantisable, ...], ...]:
    """By layer."""
    packed = _packed(model, checkpoint)
    return tuple(quantisable(layer, formats_of(packed[n])) for n, layer in enumerate(architecture.layers_of(model)))


def _packed(model: PreTrainedModel, checkpoint: Checkpoint | None) -> list[dict[str, StoredTensor]]:
    """By layer and name in it: the linear weights that the checkpoint has in blocks that can be held as they are."""
    layers, prefix = architecture.layers_of(model), architecture.layer_prefix(model)
    if checkpoint is None or not any(tensor.packed_as for tensor in checkpoint.tensors.values()):
        return [{} for _ in layers]
    places = read_as(model, checkpoint)
    return [packed_linears(layer, f"{prefix}{n}.", checkpoint.tensors, places) for n, layer in enumerate(layers)]


def owned_tensors(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[int | None, list[StoredTensor]]:
    """The stored tensors that `model` still has a place for, by layer (None: the ends).

    Of a pair of tied weights one is enough: a stored copy of the other is left out. Raises ModelError where the
    checkpoint lacks one of the model's weights, or holds it in another shape.
    """
    places = read_as(model, checkpoint)
    _refuse_other_shapes(model, checkpoint, places)
    copies = _tied_copies(model, set(places.values()))
    places = {name: target for name, target in places.items() if target not in copies}
    _refuse_missing(model, set(places.values()))
    prefix = architecture.layer_prefix(model)
    owned: dict[int | None, list[StoredTensor]] = defaultdict(list)
    for name, target in places.items():
        owned[architecture.layer_of(target, prefix)].append(checkpoint.tensors[name])
    return dict(owned)


def load_into(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    device: torch.device,
    progress: Progress,
    quantize: WeightFormat = "none",
) -> None:
    """Fill `model` (cut on meta) on `device`, layer by layer, reading only the tensors that it owns and has not yet.

    With `quantize` each layer's weights are quantised before the next layer is read. `progress` is told as
    `ReadProgress` has it. Raises ModelError.
    """
    _refuse_untied_copies(model, checkpoint)
    layers = architecture.layers_of(model)
    owned = {
        layer: group
        for layer, group in owned_tensors(model, checkpoint).items()
        if layer is None or _on_meta(layers[layer])
    }
    total_bytes = sum(tensor.size_bytes for group in owned.values() for tensor in group)
    transformers_logging.disable_progress_bar()
    mapping = get_model_conversion_mapping(model)
    missing = {name for name, tensor in model.state_dict().items() if tensor.is_meta}
    reading = ReadProgress(total_bytes, progress)
    packed = _packed(model, checkpoint)
    rounding = Rounding(quantize)
    for layer, group in owned.items():
        taken = taken_over(packed[layer], quantize) if layer is not None else {}
        read = [reading.counted(tensor) for tensor in group if tensor not in taken.values()]
        missing &= _load_group(model, read, mapping, device)
        if layer is None:
            quantise_head(model, quantize)
        elif quantize != "none":
            rounding.note(layers[layer], layer, group, taken)
            counted = {name: reading.counted(tensor) for name, tensor in taken.items()}
            quantise_layer(layers[layer], quantize, readers(counted, device))
            empty_cache(device)
    reading.end()
    rounding.log()
    _tie(model, missing & set(model.state_dict()))
    architecture.fill_buffers(model, device)
    _refuse_unfilled(model)


def _on_meta(layer: torch.nn.Module) -> bool:
    return any(tensor.is_meta for tensor in layer.state_dict().values())


def _load_group(
    model: PreTrainedModel,
    group: Iterable[StoredTensor],
    mapping: list[WeightTransform],
    device: torch.device,
) -> set[str]:
    """Load some tensors; gives the names that the model still misses."""
    load = LoadStateDictConfig(dtype=model.dtype, device_map={"": device}, weight_mapping=mapping)  # pyright: ignore[reportArgumentType]  # a list of either kind
    stored = {tensor.name: tensor.read_as(model.dtype) for tensor in group}
    info, _ = convert_and_load_state_dict_in_model(model, stored, load)
    wrong = [str(entry[0]) for entry in info.mismatched_keys] + list(info.conversion_errors)
    if wrong:
        raise _wrong_shape(sorted(wrong)[0])
    return set(info.missing_keys)


def _wrong_shape(name: str) -> ModelError:
    return ModelError(
        f"The checkpoint's '{name}' does not have the shape that config.json says.", hint="Download the model again."
    )


def read_as(model: PreTrainedModel, checkpoint: Checkpoint) -> dict[str, str]:
    """Name in the checkpoint -> name in the model, for the weights that the model has a place for."""
    state = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamed = {
        name: rename_source_key(name, renamings, converters, model.base_model_prefix, state)[0]
        for name in checkpoint.tensors
    }
    return {name: target for name, target in renamed.items() if target in state}


def _tied_copies(model: PreTrainedModel, targets: Container[str]) -> dict[str, str]:
    """Copy -> source, for tied weights of which the checkpoint stores both."""
    pairs = model.all_tied_weights_keys.items()
    return {copy: source for copy, source in pairs if copy in targets and source in targets}


def _refuse_untied_copies(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """config.json may say that two weights are one while the checkpoint holds two: then one of them lies."""
    stored = {target: checkpoint.tensors[name] for name, target in read_as(model, checkpoint).items()}
    for copy, source in _tied_copies(model, stored).items():
        if not stored[copy].same_bytes(stored[source]):
            raise ModelError(
                f"config.json ties '{copy}' to '{source}', but the checkpoint holds two different weights.",
                hint='Set "tie_word_embeddings" to false in config.json.',
            )


def _refuse_other_shapes(model: PreTrainedModel, checkpoint: Checkpoint, places: Mapping[str, str]) -> None:
    """Weights converted on load have other shapes than their parts: those show up while loading instead."""
    converters = [entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightConverter)]
    converted = {target for entry in converters for target in entry.target_patterns}
    state = model.state_dict()
    for name, target in places.items():
        same = checkpoint.tensors[name].shape == tuple(state[target].shape)
        if not same and not any(part in target for part in converted):
            raise _wrong_shape(name)


def _refuse_missing(model: PreTrainedModel, found: set[str]) -> None:
    """Weights fused on load have one name more than the checkpoint's: those show up after loading instead."""
    fused = {target for entry in get_model_conversion_mapping(model) for target in entry.target_patterns}
    tied = model.all_tied_weights_keys
    for name in model.state_dict():
        other = tied.get(name) or next((copy for copy, source in tied.items() if source == name), "")
        if name not in found and other not in found and not any(part in name for part in fused):
            raise ModelError(f"The checkpoint lacks the weight '{name}'.", hint="Download the model again.")


def _tie(model: PreTrainedModel, missing: set[str]) -> None:
    present = [pair for pair in model.all_tied_weights_keys.items() if _has(model, pair[0]) and _has(model, pair[1])]
    if present:
        model.tie_weights(missing_keys=missing, recompute_mapping=False)


def _has(model: PreTrainedModel, name: str) -> bool:
    return hasattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])


def _refuse_unfilled(model: PreTrainedModel) -> None:
    tensors: Mapping[str, torch.Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ModelError(f"The checkpoint lacks the weight '{name}'.", hint="Download the model again.")


def _states(trace: Trace, layer_count: int) -> tuple[int, ...]:
    elements = tuple(trace.state_elements(index) for index in range(layer_count))
    return elements if any(elements) else ()


def _window(trace: Trace, layer_count: int, window_tokens: int) -> WindowElements:
    shapes = [trace.window_shapes(index, window_tokens) for index in range(layer_count)]
    elements = tuple(sum(shape.elements for shape in part) for part in shapes)
    return WindowElements(window_tokens, elements, tuple(sum(shape.vectors for shape in part) for part in shapes))


def _checkpoint_dtype(checkpoint: Checkpoint) -> str:
    """The dtype that most of the stored bytes have. Raises ModelError for one that no plan can compute in."""
    sizes: Counter[torch.dtype] = Counter()
    for tensor in checkpoint.tensors.values():
        sizes[tensor.dtype] += tensor.size_bytes
    most = sizes.most_common(1)[0][0]
    for name, dtype in DTYPES.items():
        if dtype == most:
            return name
    raise ModelError(f"The weights are stored as {most}, which VRAMancer cannot compute in yet.")
