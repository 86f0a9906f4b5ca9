"""A shard: the weights of a layer range, and one run of hidden states through them.

Holds no KV cache and knows no step; what the layers attend to is handed in. Must never apply the final norm: that
belongs to the ends.
"""

from __future__ import annotations

import torch

from transport.types import LayerRange, WeightFormat
from vramancer_cli.engine import architecture, weights
from vramancer_cli.engine.attention import AttentionContext
from vramancer_cli.engine.checkpoint import Checkpoint
from vramancer_cli.engine.trace import KvShape, trace_layers
from vramancer_cli.engine.weights import Progress
from vramancer_cli.errors import ModelError


class Shard:
    """Layers `[start, end)` of a checkpoint: on meta after construction, usable after `load`.

    `weights_bytes` and `kv_shapes` are known from the start, so that memory is reserved before it is taken.
    """

    def __init__(
        self, checkpoint: Checkpoint, layers: LayerRange, dtype: torch.dtype, quantize: WeightFormat = "none"
    ) -> None:
        self.layers = layers
        self._checkpoint = checkpoint
        self._quantize: WeightFormat = quantize
        self._model = architecture.build(checkpoint, dtype)
        layer_count = len(architecture.layers_of(self._model))
        if not 0 <= layers.start < layers.end <= layer_count:
            raise ModelError(f"The model has {layer_count} layers, not {layers}.")
        architecture.keep(self._model, layers, ends=False)
        self.hidden_size: int = self._model.config.get_text_config().hidden_size
        self.weights_bytes = weights.weights_bytes(self._model, quantize)
        self.kv_shapes: dict[int, KvShape] = trace_layers(checkpoint, layers).kv_shapes
        self._base = architecture.base_model(self._model)

    def load(self, device: torch.device, progress: Progress) -> None:
        """Read the owned tensors to `device`. Raises ModelError."""
        weights.load_into(self._model, self._checkpoint, device, progress, self._quantize)

    def unload(self) -> None:
        """Free the weights at once, whoever still refers to the shard."""
        architecture.free(self._model)

    def run(self, hidden: torch.Tensor, positions: torch.Tensor, paged: AttentionContext) -> torch.Tensor:
        """[T, hidden] in and out; positions [1, T] int64. Under torch.inference_mode."""
        output = self._base(
            inputs_embeds=hidden[None], position_ids=positions, attention_mask=None, use_cache=False, paged=paged
        )
        return output.last_hidden_state[0]
