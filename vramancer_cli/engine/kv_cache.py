"""The KV cache of one stage: the memory, in blocks, and how it is written and read.

Block ids come from the head and are valid on every stage; here they only become places in memory.
Must never decide which block a sequence gets, nor know a sequence: that is the block tables' business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch

from transport.messages import BlockCopy
from transport.types import CacheFormat
from vramancer_cli.engine.kv_rows import KvRows, PlainRows, RoundedRows
from vramancer_cli.engine.trace import KvShape
from vramancer_cli.models.cache_format import held_bytes

FULL: Final[Mapping[int, int]] = {}
"""Every layer is in group 0."""


class KvPool:
    """Keys and values of some layers, [block_count, block_tokens, kv_heads, size] each, on one device.

    `block_counts` by cache group; `groups`: the layers that are in another group than 0, and which. With `kv_cache`
    "int8" they are rounded as they are written, and turned back into `dtype` as they are read.
    A token's slot is `block id * block_tokens + offset`.
    """

    def __init__(
        self,
        shapes: Mapping[int, KvShape],
        block_counts: Sequence[int],
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        groups: Mapping[int, int] = FULL,
        kv_cache: CacheFormat = "plain",
    ) -> None:
        kind = PlainRows if kv_cache == "plain" else RoundedRows

        def empty(layer: int, heads: int, size: int) -> KvRows:
            return kind((block_counts[self.group(layer)], block_tokens, heads, size), dtype, device)

        self.block_tokens = block_tokens
        self._groups = groups
        self.keys = {layer: empty(layer, shape.heads, shape.key_size) for layer, shape in shapes.items()}
        self.values = {layer: empty(layer, shape.heads, shape.value_size) for layer, shape in shapes.items()}

    def group(self, layer: int) -> int:
        """The cache group whose blocks hold its keys and values."""
        return self._groups.get(layer, 0)

    def sizes(self, layer: int) -> tuple[int, int]:
        """Of a key and of a value."""
        return self.keys[layer].size, self.values[layer].size

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put key and value [kv_heads, T, size] into the slots [T] (int64, no slot twice)."""
        self.keys[layer].write(slots, key.transpose(0, 1))
        self.values[layer].write(slots, value.transpose(0, 1))

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copy whole blocks, one after the other: no target is another one's source."""
        for layer, keys in self.keys.items():
            for copy in copies:
                if copy.group == self.group(layer):
                    keys.copy(copy.source, copy.target)
                    self.values[layer].copy(copy.source, copy.target)

    def clear(self) -> None:
        """Free all memory at once, whoever still refers to the pool."""
        self.keys.clear()
        self.values.clear()

    def view(self, layer: int, first_slot: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [kv_heads, tokens, size] of consecutive slots: as views, unless they are rounded."""
        key = self.keys[layer].view(first_slot, tokens)
        return key.transpose(0, 1), self.values[layer].view(first_slot, tokens).transpose(0, 1)

    def gather(self, layer: int, blocks: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `view`, copied from the blocks [n] (int64) of a table that is not consecutive."""
        key = self.keys[layer].gather(blocks, tokens)
        return key.transpose(0, 1), self.values[layer].gather(blocks, tokens).transpose(0, 1)


def pool_bytes(
    shapes: Mapping[int, KvShape],
    block_counts: Sequence[int],
    block_tokens: int,
    dtype: torch.dtype,
    groups: Mapping[int, int] = FULL,
    kv_cache: CacheFormat = "plain",
) -> int:
    """What such a KvPool takes."""
    return sum(
        _token_bytes(shape, dtype, kv_cache) * block_counts[groups.get(layer, 0)] * block_tokens
        for layer, shape in shapes.items()
    )


def gather_bytes(
    shapes: Mapping[int, KvShape], tokens: int, dtype: torch.dtype, kv_cache: CacheFormat = "plain"
) -> int:
    """What one `gather` of `tokens` tokens takes in the layer where it takes most, rounded and turned back."""
    formats: tuple[CacheFormat, ...] = ("plain",) if kv_cache == "plain" else ("plain", kv_cache)
    by_layer = (sum(_token_bytes(shape, dtype, held) for held in formats) for shape in shapes.values())
    return max(by_layer, default=0) * tokens


def _token_bytes(shape: KvShape, dtype: torch.dtype, kv_cache: CacheFormat) -> int:
    return held_bytes(shape.elements, shape.vectors, dtype.itemsize, kv_cache)
