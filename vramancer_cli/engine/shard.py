"""A shard: the weights of a layer range, and one run of what crosses its cuts through them.

Holds no KV cache and knows no step; what the layers attend to is handed in. Must never apply the final norm: that
belongs to the ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from transport.messages import WindowGroup
from transport.types import LayerRange, WeightFormat
from vramancer_cli.engine import architecture, native, weights
from vramancer_cli.engine.attention import AttentionContext
from vramancer_cli.engine.boundary import Boundary, gathered
from vramancer_cli.engine.checkpoint import Checkpoint
from vramancer_cli.engine.flat_layer import FLAT_DTYPES, FlatLayer
from vramancer_cli.engine.layer_forms import flat_form
from vramancer_cli.engine.layer_watch import PROBE_POSITIONS, PROBE_TOKENS, LayerWatch, Probe, Seen
from vramancer_cli.engine.read_progress import Progress
from vramancer_cli.engine.sequence_cache import Place, SequenceCache
from vramancer_cli.engine.trace import KvShape, positions_for, trace_layers
from vramancer_cli.errors import ModelError
from vramancer_cli.telemetry import log

_log = log.get("engine")


class Shard:
    """Layers `[start, end)` of a checkpoint: on meta after construction, usable after `load`.

    `weights_bytes`, `kv_shapes` and `state_elements` (of one sequence) are known from the start, so that memory is
    reserved before it is taken. `entering` and `leaving`: what crosses before and after its layers.
    """

    def __init__(
        self, checkpoint: Checkpoint, layers: LayerRange, dtype: torch.dtype, quantize: WeightFormat = "none"
    ) -> None:
        self.layers = layers
        self._quantize: WeightFormat = quantize
        self.trace = trace_layers(checkpoint)
        layer_count = len(self.trace.seams.calls)
        if not 0 <= layers.start < layers.end <= layer_count:
            raise ModelError(f"The model has {layer_count} layers, not {layers}.")
        self._checkpoint = checkpoint
        self._model = architecture.build(checkpoint, dtype, ragged=self.trace.ragged)
        self._split = architecture.keep_layers(self._model, self.trace.seams, layers)
        self.entering, self.leaving = self.trace.seams.at(layers.start), self.trace.seams.at(layers.end)
        self.vocab_size: int = self._model.config.get_text_config().vocab_size
        self.weights_bytes = weights.weights_bytes(self._model, quantize, checkpoint)
        self.kv_shapes: dict[int, KvShape] = self.trace.kv_shapes_in(layers)
        self.keepers = self.trace.keepers_in(layers)
        self.state_elements = sum(self.trace.state_elements(layer) for layer in range(layers.start, layers.end))

    @property
    def is_rounded(self) -> bool:
        """Whether it computes with rounded numbers, which other kernels may round otherwise (grade *stable*)."""
        return self._quantize != "none" or self._model.dtype != torch.float32

    def groups(self, windows: Sequence[WindowGroup]) -> dict[int, int]:
        """The cache layers whose keys and values lie in another cache group than 0, and in which."""
        numbers = {window.window_tokens: number for number, window in enumerate(windows, start=1)}
        looks_back = {layer: self.trace.looks_back(layer) for layer in self.kv_shapes}
        return {layer: numbers[tokens] for layer, tokens in looks_back.items() if tokens in numbers}

    def take_over(self, old: Shard) -> None:
        """Move the loaded layers that both own out of `old`, which is unloaded; `load` reads the rest.

        Nothing is moved where `old` is of another checkpoint, computes differently, or its layers share weights.
        """
        alike = (self._checkpoint.digest, self._model.dtype, self._quantize, self.trace.ragged)
        same = alike == (old._checkpoint.digest, old._model.dtype, old._quantize, old.trace.ragged)
        if same and architecture.layers_are_apart(self._model):
            for index in range(max(self.layers.start, old.layers.start), min(self.layers.end, old.layers.end)):
                self._split.put_in(index, old._split.take_out(index))
        old.unload()

    def load(self, device: torch.device, progress: Progress) -> None:
        """Read the owned tensors that are not here yet to `device`. Raises ModelError."""
        weights.load_into(self._model, self._checkpoint, device, progress, self._quantize)
        if self._may_be_flat(device):
            self._flatten()

    def _may_be_flat(self, device: torch.device) -> bool:
        rounded = self._quantize != "none" and self._model.dtype in FLAT_DTYPES
        return rounded and self.trace.ragged and device.type == "cpu" and native.is_there()

    def _flatten(self) -> None:
        """Put flat layers in the place of those that are proved to compute just that."""
        layers = architecture.layers_of(self._model)
        owned = {index: layers[index] for index in range(self.layers.start, self.layers.end)}
        family = {index: layer for index, layer in owned.items() if not isinstance(layer, FlatLayer)}
        if len(self.entering) != 1 or not family:
            return
        seen = self._watched(family)
        with torch.inference_mode():
            flat = {index: flat_form(layer, seen[index]) for index, layer in family.items()}
        for index, layer in flat.items():
            if layer is not None:
                self._split.put_in(index, layer)
        found = sum(layer is not None for layer in flat.values())
        _log.info("layers computed flat", layers=str(self.layers), flat=found, of=len(family))

    def _watched(self, layers: Mapping[int, torch.nn.Module]) -> dict[int, Seen]:
        """What a few made-up tokens show of these layers."""
        watch = LayerWatch()
        width = torch.Size(self.entering[0].shape).numel()
        noise = torch.randn(PROBE_TOKENS, width, generator=torch.Generator().manual_seed(7)).to(self._model.dtype)
        with torch.inference_mode(), watch.on(layers):
            self.run(Boundary(noise), torch.tensor([PROBE_POSITIONS]), Probe(watch))
        return watch.seen

    def unload(self) -> None:
        """Free the weights at once, whoever still refers to the shard."""
        architecture.free(self._model)

    def new_cache(self, place: Place) -> SequenceCache:
        """For a sequence that has no tokens yet."""
        return SequenceCache(self._model, self.trace.cache_kind, place)

    def run(self, boundary: Boundary, positions: torch.Tensor, paged: AttentionContext) -> Boundary:
        """A ragged batch of T tokens; positions [1, T] int64. Only where `trace.ragged`. Under torch.inference_mode."""
        return self._pass(boundary, positions, {"use_cache": False, "paged": paged})

    def run_alone(self, boundary: Boundary, positions: torch.Tensor, kept: SequenceCache, place: Place) -> Boundary:
        """One sequence's next tokens, which belong at `place`; else as `run`."""
        return self._pass(boundary, positions, {"use_cache": True, "past_key_values": kept.at(place)})

    def _pass(self, boundary: Boundary, positions: torch.Tensor, arguments: dict[str, Any]) -> Boundary:
        arguments |= positions_for(self._model, positions) | {"input_ids": torch.zeros_like(positions)}
        return gathered(self.leaving, self._split.run(boundary.taken(self.entering), **arguments))
