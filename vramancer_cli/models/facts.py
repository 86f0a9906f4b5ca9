"""What placement and scheduling need to know of a model, as one frozen value. Filled by engine/weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from transport.messages import ModelRef
from transport.types import DTYPE_BYTES, CacheFormat, LayerRange, WeightFormat
from vramancer_cli.errors import ModelError
from vramancer_cli.models.cache_format import held_bytes
from vramancer_cli.models.quantisation import (
    Quantisable,
    head_quantising_bytes,
    head_saved_bytes,
    quantising_bytes,
    saved_bytes,
)


@dataclass(frozen=True, slots=True)
class WindowElements:
    """What of each layer's KV nobody reads behind the last `window_tokens` tokens: elements and vectors per token."""

    window_tokens: int
    per_token: tuple[int, ...]
    vectors_per_token: tuple[int, ...] = ()


EVERY_TOKEN: Final[Mapping[int, int]] = {}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Sizes of a checkpoint, in elements, so that bytes follow from the dtype chosen for the plan.

    `layer_parameters[i]`: weights of decoder layer i. `ends_parameters`: embedding, final norm and output head
    (tied weights once). `kv_elements_per_token[i]`: K plus V elements that layer i keeps per token.
    `kv_vectors_per_token[i]`: how many keys and values these elements make up, each of which has a scale where they are
    held in int8; () where they cannot be. `windows`: the parts that only a window of tokens is read of, one for each
    length of window.
    `state_elements_per_sequence[i]`: recurrent state that layer i keeps per sequence, however long; () where no layer
    keeps any.
    `workspace_elements_per_token`: the most that is alive at once while one token row passes a layer or the head.
    `context_tokens`: the longest context that the checkpoint declares. `layer_quantisable[i]`: the weights of layer i
    that a quantised plan holds in its format; empty: none of any. `head`: the output head, where it can be quantised.
    """

    ref: ModelRef
    family: str
    hidden_size: int
    vocab_size: int
    context_tokens: int
    checkpoint_dtype: str
    layer_parameters: tuple[int, ...]
    ends_parameters: int
    kv_elements_per_token: tuple[int, ...]
    workspace_elements_per_token: int
    layer_quantisable: tuple[tuple[Quantisable, ...], ...] = ()
    head: Quantisable | None = None
    state_elements_per_sequence: tuple[int, ...] = ()
    windows: tuple[WindowElements, ...] = ()
    kv_vectors_per_token: tuple[int, ...] = ()

    @property
    def layer_count(self) -> int:
        return len(self.layer_parameters)

    @property
    def is_stored_packed(self) -> bool:
        """Whether the checkpoint has weights of layers in a format that can be taken over without loss."""
        return any(part.stored for parts in self.layer_quantisable for part in parts)

    def layer_bytes(self, dtype: str, quantize: WeightFormat = "none") -> tuple[int, ...]:
        """What each layer's weights take."""
        plain = tuple(count * DTYPE_BYTES[dtype] for count in self.layer_parameters)
        if quantize == "none" or not self.layer_quantisable:
            return plain
        pairs = zip(plain, self.layer_quantisable, strict=True)
        return tuple(size - saved_bytes(parts, quantize, dtype) for size, parts in pairs)

    def weights_bytes(self, layers: LayerRange, dtype: str, quantize: WeightFormat = "none") -> int:
        return sum(self.layer_bytes(dtype, quantize)[layers.start : layers.end])

    def quantising_bytes(self, dtype: str, quantize: WeightFormat) -> int:
        """What a node takes beside its quantised weights while it loads one layer after the other."""
        if quantize == "none" or not self.layer_quantisable:
            return 0
        pairs = zip(self.layer_parameters, self.layer_quantisable, strict=True)
        return max(quantising_bytes(parts, quantize, count, dtype, self.checkpoint_dtype) for count, parts in pairs)

    def ends_bytes(self, dtype: str, quantize: WeightFormat = "none") -> int:
        return self.ends_parameters * DTYPE_BYTES[dtype] - head_saved_bytes(self.head, quantize, dtype)

    def ends_workspace_bytes(self, dtype: str, quantize: WeightFormat, max_step_tokens: int) -> int:
        """What the ends use beside their weights: a step's rows of logits, or before any step a head in the making."""
        making_bytes = head_quantising_bytes(self.head, quantize, dtype, self.checkpoint_dtype)
        return max(self.workspace_bytes(max_step_tokens), making_bytes)

    def kv_bytes(
        self,
        layers: LayerRange,
        dtype: str,
        tokens: int,
        window_tokens: Mapping[int, int] = EVERY_TOKEN,
        kv_cache: CacheFormat = "plain",
    ) -> int:
        """Of `tokens` tokens; where only a window is read whose length is in `window_tokens`, of as many as there."""
        part = slice(layers.start, layers.end)

        def size_bytes(elements: tuple[int, ...], vectors: tuple[int, ...]) -> int:
            return held_bytes(sum(elements[part]), sum(vectors[part]), DTYPE_BYTES[dtype], kv_cache)

        total_bytes = size_bytes(self.kv_elements_per_token, self.kv_vectors_per_token) * tokens
        for window in self.windows:
            kept = window_tokens.get(window.window_tokens, tokens)
            total_bytes += size_bytes(window.per_token, window.vectors_per_token) * (kept - tokens)
        return total_bytes

    def check_cache(self, kv_cache: CacheFormat) -> None:
        """Raises ModelError where keys and values cannot be held so."""
        if kv_cache != "plain" and not self.kv_vectors_per_token:
            raise ModelError(
                f"The layers of '{self.family}' models keep each sequence's cache themselves, which cannot be rounded.",
                hint="Start without --kv-cache.",
            )

    def gather_bytes(self, dtype: str, tokens: int, kv_cache: CacheFormat) -> int:
        """What a copy of so many tokens' keys and values takes in the layer where it takes most: in `dtype` to compute
        with and, of a quantised cache, as held too."""
        layers = [LayerRange(index, index + 1) for index in range(self.layer_count)]
        formats: tuple[CacheFormat, ...] = ("plain",) if kv_cache == "plain" else ("plain", kv_cache)
        return max(sum(self.kv_bytes(layer, dtype, tokens, kv_cache=held) for held in formats) for layer in layers)

    @property
    def has_state(self) -> bool:
        return any(self.state_elements_per_sequence)

    def state_bytes(self, layers: LayerRange, slots: int) -> int:
        """Counted in float32 whatever the dtype: a state sums up all tokens, and rounding it would sum up too."""
        return sum(self.state_elements_per_sequence[layers.start : layers.end]) * slots * DTYPE_BYTES["float32"]

    def workspace_bytes(self, max_step_tokens: int) -> int:
        """Counted in float32 whatever the dtype: norms, softmax and logits are computed in it."""
        return self.workspace_elements_per_token * max_step_tokens * DTYPE_BYTES["float32"]
