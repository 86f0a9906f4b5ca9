"""The cache that a family's own layers write to, for one sequence at a time: transformers' cache over our blocks.

For families whose layers do more than attend: choose positions, compress, or keep a recurrent state. Keys, values and
indexer keys go into the paged pool, whatever else a cache layer keeps stays with it: that is the sequence's state.
Must never know a family by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Protocol

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

_PAGED_UPDATES: Final = (DynamicLayer.update, DynamicSlidingWindowLayer.update)


class Place(Protocol):
    """Where the per-token values of the sequence that runs now lie."""

    @property
    def start(self) -> int:
        """Tokens that are there already."""
        ...

    def keep(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [heads, count, size] of the new tokens in; those of all tokens out."""
        ...


def index_layer(layer: int) -> int:
    """The number of the cache layer that holds the keys of the indexer of cache layer `layer`."""
    return -1 - layer


class SequenceCache:
    """One sequence's `cache`, of the family's own kind, whose per-token values lie where `at` last said.

    Its methods take the place of those of the cache's layers that would keep keys and values themselves.
    """

    def __init__(self, model: PreTrainedModel, kind: type[Cache], place: Place) -> None:
        self._place = place
        self.cache: Any = kind(config=model.config) if kind is DynamicCache else kind()  # pyright: ignore[reportCallIssue]
        for index, layer in enumerate(self.cache.layers):
            self._page(layer, index)
        self.cache.get_seq_length = lambda layer_idx=0: self._place.start
        self._own = tuple(layer for layer in self.cache.layers if hasattr(layer, "cumulative_length"))
        if self.cache.layer_class_to_replicate is not None:
            self._page_as_it_grows(self.cache.layer_class_to_replicate)
        self.at(place)

    def at(self, place: Place) -> Cache:
        """The cache, for a call whose tokens belong at `place`."""
        self._place = place
        for layer in self._own:  # those that count for themselves, also where another stage holds the layer
            layer.cumulative_length = place.start
        return self.cache

    def windows(self) -> dict[int, int]:
        """By cache layer, how many tokens back it looks, where not all."""
        found = {index: getattr(layer, "sliding_window", None) for index, layer in enumerate(self.cache.layers)}
        return {index: window for index, window in found.items() if window is not None}

    def state(self) -> Iterator[torch.Tensor]:
        """Every tensor that the cache keeps beside the place."""
        yield from _tensors(vars(self.cache))

    def _page(self, layer: Any, index: int) -> Any:
        """`layer`, paged where it keeps keys and values as transformers' own layers do."""
        if not isinstance(layer, CacheLayerMixin) or type(layer).update not in _PAGED_UPDATES:
            return layer
        window: int | None = getattr(layer, "sliding_window", None)

        def update(key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
            key, value = self._place.keep(index, key_states[0], value_states[0])
            first = self._first(window)
            return key[None, :, first:], value[None, :, first:]

        def update_indexer(indexer_key_states: torch.Tensor) -> torch.Tensor:
            nothing = indexer_key_states[..., :0]
            return self._place.keep(index_layer(index), indexer_key_states, nothing)[0]

        replaced: dict[str, Any] = {
            "update": update,
            "get_seq_length": lambda: self._place.start,
            "get_mask_sizes": lambda count: self._mask_sizes(count, window),
            "is_initialized": True,
        }
        vars(layer).update(replaced | ({"update_indexer": update_indexer} if hasattr(layer, "update_indexer") else {}))
        return layer

    def _page_as_it_grows(self, kind: type[Any]) -> None:
        """For a cache that makes its layers as they come: those that other stages hold count as if they were here."""
        self.cache.layer_class_to_replicate = lambda: self._page(kind(), len(self.cache.layers))
        self.cache.get_mask_sizes = lambda query_length, layer_idx: self._mask_sizes(query_length, None)

    def _mask_sizes(self, count: int, window: int | None) -> tuple[int, int]:
        first = self._first(window)
        return self._place.start + count - first, first

    def _first(self, window: int | None) -> int:
        """The first position that any new token may see."""
        return 0 if window is None else max(self._place.start - window + 1, 0)


def _tensors(part: Any) -> Iterator[torch.Tensor]:
    if isinstance(part, torch.Tensor):
        yield part
    elif isinstance(part, dict):
        for value in part.values():
            yield from _tensors(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            yield from _tensors(value)
    elif isinstance(part, (CacheLayerMixin, LinearAttentionCacheLayerMixin)):
        yield from _tensors(vars(part))
