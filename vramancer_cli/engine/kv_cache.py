"""The KV cache of one stage: the memory, in blocks, and how it is written and read.

Block ids come from the head and are valid on every stage; here they only become places in memory.
Must never decide which block a sequence gets, nor know a sequence: that is the block tables' business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch

from transport.messages import BlockCopy
from vramancer_cli.engine.trace import KvShape

FULL: Final[Mapping[int, int]] = {}
"""Every layer is in group 0."""


class KvPool:
    """Keys and values of some layers, [block_count, block_tokens, kv_heads, size] each, on one device.

    `block_counts` by cache group; `groups`: the layers that are in another group than 0, and which.
    A token's slot is `block id * block_tokens + offset`: the flat view [slots, kv_heads, size] is what is used.
    """

    def __init__(
        self,
        shapes: Mapping[int, KvShape],
        block_counts: Sequence[int],
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        groups: Mapping[int, int] = FULL,
    ) -> None:
        def empty(layer: int, heads: int, size: int) -> torch.Tensor:
            return torch.empty(block_counts[self.group(layer)], block_tokens, heads, size, dtype=dtype, device=device)

        self.block_tokens = block_tokens
        self._groups = groups
        self.keys = {layer: empty(layer, shape.heads, shape.key_size) for layer, shape in shapes.items()}
        self.values = {layer: empty(layer, shape.heads, shape.value_size) for layer, shape in shapes.items()}
        self._flat_keys = {layer: tensor.flatten(0, 1) for layer, tensor in self.keys.items()}
        self._flat_values = {layer: tensor.flatten(0, 1) for layer, tensor in self.values.items()}

    def group(self, layer: int) -> int:
        """The cache group whose blocks hold its keys and values."""
        return self._groups.get(layer, 0)

    def sizes(self, layer: int) -> tuple[int, int]:
        """Of a key and of a value."""
        return self.keys[layer].shape[-1], self.values[layer].shape[-1]

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put key and value [kv_heads, T, size] into the slots [T] (int64, no slot twice)."""
        self._flat_keys[layer].index_copy_(0, slots, key.transpose(0, 1))
        self._flat_values[layer].index_copy_(0, slots, value.transpose(0, 1))

    def copy(self, copies: Sequence[BlockCopy]) -> None:
        """Copy whole blocks, one after the other: no target is another one's source."""
        for layer, keys in self.keys.items():
            for copy in copies:
                if copy.group == self.group(layer):
                    for tensor in (keys, self.values[layer]):
                        tensor[copy.target].copy_(tensor[copy.source])

    def clear(self) -> None:
        """Free all memory at once, whoever still refers to the pool."""
        for tensors in (self.keys, self.values, self._flat_keys, self._flat_values):
            tensors.clear()

    def view(self, layer: int, first_slot: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [kv_heads, tokens, size] of consecutive slots, as views."""
        key = self._flat_keys[layer].narrow(0, first_slot, tokens)
        value = self._flat_values[layer].narrow(0, first_slot, tokens)
        return key.transpose(0, 1), value.transpose(0, 1)

    def gather(self, layer: int, blocks: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `view`, copied from the blocks [n] (int64) of a table that is not consecutive."""
        key = self.keys[layer].index_select(0, blocks).flatten(0, 1)[:tokens]
        value = self.values[layer].index_select(0, blocks).flatten(0, 1)[:tokens]
        return key.transpose(0, 1), value.transpose(0, 1)


def pool_bytes(
    shapes: Mapping[int, KvShape],
    block_counts: Sequence[int],
    block_tokens: int,
    dtype: torch.dtype,
    groups: Mapping[int, int] = FULL,
) -> int:
    """What such a KvPool takes."""
    elements = sum(shape.elements * block_counts[groups.get(layer, 0)] for layer, shape in shapes.items())
    return elements * block_tokens * dtype.itemsize


def gather_bytes(shapes: Mapping[int, KvShape], tokens: int, dtype: torch.dtype) -> int:
    """What one `gather` of `tokens` tokens takes in the layer where it takes most."""
    return max((shape.elements for shape in shapes.values()), default=0) * tokens * dtype.itemsize
