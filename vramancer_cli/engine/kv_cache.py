"""The KV cache of one stage: the memory, in blocks, and the tables that say whose token lies where.

Block ids come from the head and are valid on every stage; here they only become places in memory.
Must never decide which block a sequence gets, and never read what a step did not announce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from transport.errors import RemoteProtocolError
from transport.messages import Step, StepRow
from vramancer_cli.engine.trace import KvShape

CACHE_GROUPS: Final = 1
"""Every layer keeps every token (group 0); windows and recurrent states get groups of their own later."""


class KvPool:
    """Keys and values of some layers, [block_count, block_tokens, kv_heads, size] each, on one device.

    A token's slot is `block id * block_tokens + offset`: the flat view [slots, kv_heads, size] is what is used.
    """

    def __init__(
        self,
        shapes: Mapping[int, KvShape],
        block_count: int,
        block_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        def empty(heads: int, size: int) -> torch.Tensor:
            return torch.empty(block_count, block_tokens, heads, size, dtype=dtype, device=device)

        self.block_tokens = block_tokens
        self.keys = {layer: empty(shape.heads, shape.key_size) for layer, shape in shapes.items()}
        self.values = {layer: empty(shape.heads, shape.value_size) for layer, shape in shapes.items()}
        self._flat_keys = {layer: tensor.flatten(0, 1) for layer, tensor in self.keys.items()}
        self._flat_values = {layer: tensor.flatten(0, 1) for layer, tensor in self.values.items()}

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Put key and value [kv_heads, T, size] into the slots [T] (int64, no slot twice)."""
        self._flat_keys[layer].index_copy_(0, slots, key.transpose(0, 1))
        self._flat_values[layer].index_copy_(0, slots, value.transpose(0, 1))

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


def pool_bytes(shapes: Mapping[int, KvShape], tokens: int, dtype: torch.dtype) -> int:
    """What a KvPool of `tokens` slots takes."""
    return sum(shape.elements for shape in shapes.values()) * tokens * dtype.itemsize


def gather_bytes(shapes: Mapping[int, KvShape], tokens: int, dtype: torch.dtype) -> int:
    """What one `gather` of `tokens` tokens takes in the layer where it takes most."""
    return max((shape.elements for shape in shapes.values()), default=0) * tokens * dtype.itemsize


@dataclass(frozen=True, slots=True)
class BlockTable:
    """A sequence's blocks in token order, and how many tokens have been written into them."""

    blocks: tuple[int, ...]
    tokens: int
    consecutive: bool


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A step's row with the whole table that it leads to: new tokens at positions [start, end)."""

    start: int
    end: int
    blocks: tuple[int, ...]
    consecutive: bool
    outputs: int


class BlockTables:
    """Every live sequence's table on this stage."""

    def __init__(self, block_count: int, block_tokens: int, context_tokens: int) -> None:
        self._block_count = block_count
        self._block_tokens = block_tokens
        self._context_tokens = context_tokens
        self._tables: dict[int, BlockTable] = {}

    def __len__(self) -> int:
        return len(self._tables)

    def apply(self, step: Step) -> list[PlacedRow]:
        """Drop what ended, then place each row. Nothing changes when RemoteProtocolError is raised."""
        kept = {sequence: table for sequence, table in self._tables.items() if sequence not in step.ended}
        seen: set[int] = set()
        written: set[int] = set()
        placed: list[PlacedRow] = []
        for row in step.rows:
            _refuse(row.sequence in seen, row, "stands twice in one step")
            seen.add(row.sequence)
            table = self._extended(row, kept.get(row.sequence))
            self._claim(row, table, written)
            kept[row.sequence] = table
            placed.append(PlacedRow(row.start, table.tokens, table.blocks, table.consecutive, row.outputs))
        self._tables = kept
        return placed

    def _extended(self, row: StepRow, old: BlockTable | None) -> BlockTable:
        """The table after `row`; `old` is None for a sequence that this stage does not know."""
        end = row.start + row.count
        _refuse(row.count < 1 or row.start < 0, row, f"adds {row.count} tokens at {row.start}")
        _refuse(not 0 <= row.outputs <= row.count, row, f"wants {row.outputs} outputs of {row.count} tokens")
        _refuse(end > self._context_tokens, row, f"grows to {end} tokens, over {self._context_tokens}")
        groups = (len(row.first_block), len(row.blocks))
        _refuse(groups != (CACHE_GROUPS, CACHE_GROUPS), row, f"names {groups} cache groups instead of {CACHE_GROUPS}")
        first, given = row.first_block[0], row.blocks[0]
        known_tokens = old.tokens if old else 0
        replaced = bool(given) and first == 0
        gap = row.start > known_tokens if replaced else row.start != known_tokens
        _refuse(gap, row, f"starts at {row.start}, but {known_tokens} tokens are here")
        blocks, consecutive = (old.blocks, old.consecutive) if old else ((), True)
        if given:
            blocks = self._with_given(row, () if replaced else blocks)
            consecutive = blocks == tuple(range(blocks[0], blocks[0] + len(blocks)))
        _refuse(len(blocks) * self._block_tokens < end, row, f"has {len(blocks)} blocks, too few for {end} tokens")
        return BlockTable(blocks, end, consecutive)

    def _with_given(self, row: StepRow, blocks: tuple[int, ...]) -> tuple[int, ...]:
        first, given = row.first_block[0], row.blocks[0]
        _refuse(first != len(blocks), row, f"gets blocks at {first}, but its table has {len(blocks)}")
        unknown = [block for block in given if not 0 <= block < self._block_count]
        _refuse(bool(unknown), row, f"gets a block that does not exist: {unknown[:1]} of {self._block_count}")
        extended = blocks + given
        _refuse(len(set(extended)) != len(extended), row, "has the same block twice in its table")
        return extended

    def _claim(self, row: StepRow, table: BlockTable, written: set[int]) -> None:
        """No two rows of a step may write into one block."""
        mine = table.blocks[row.start // self._block_tokens : (table.tokens - 1) // self._block_tokens + 1]
        _refuse(not written.isdisjoint(mine), row, "writes into another row's block")
        written.update(mine)


def _refuse(wrong: bool, row: StepRow, why: str) -> None:
    if wrong:
        raise RemoteProtocolError(f"The step contradicts the block tables: sequence {row.sequence} {why}.")
