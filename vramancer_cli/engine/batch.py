"""One step as tensors: built once, then used by every layer of the stage.

Must never outlive its step, and never know what a layer computes around its attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import torch

from vramancer_cli.engine.attention import Options, attend_sequence
from vramancer_cli.engine.block_tables import PlacedRow
from vramancer_cli.engine.kv_cache import KvPool


@dataclass(frozen=True, slots=True)
class Span:
    """A row's place in the batch: tokens [first, first + count); its sequence's K and V: the first `end` tokens.

    `where` is the first slot of a consecutive table, else the table's block ids, [n] int64 on the device.
    """

    first: int
    count: int
    start: int
    end: int
    where: int | torch.Tensor


NO_KEEPERS: Final[Mapping[int, int]] = {}


class Batch:
    """The AttentionContext of one step.

    `positions` [1, T] int64, `slots` [T] int64 (where each new token's K and V go), `outputs` [R] int64 (the index
    of each token whose final hidden state is wanted), all on the pool's device. `keepers`: layers that attend to
    what another layer keeps, and that layer.
    """

    def __init__(
        self, rows: Sequence[PlacedRow], pool: KvPool, device: torch.device, keepers: Mapping[int, int] = NO_KEEPERS
    ) -> None:
        self._pool = pool
        self._keepers = keepers
        positions = [position for row in rows for position in range(row.start, row.end)]
        slots = [slot for row in rows for slot in _slots(row, pool.block_tokens)]
        both = torch.tensor([positions, slots], dtype=torch.int64).to(device)
        self.positions, self.slots = both[:1], both[1]
        self.spans = _spans(rows, pool.block_tokens, device)
        self.outputs = torch.tensor(_outputs(rows), dtype=torch.int64).to(device)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        """Keep the new K and V, then attend row by row, so that no row feels its neighbours. Gives [T, heads, size]."""
        kept = self._keepers.get(layer, layer)
        if kept == layer:
            self._pool.write(layer, self.slots, key, value)
        parts = [self._attend_span(kept, span, query, options) for span in self.spans]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend_span(self, layer: int, span: Span, query: torch.Tensor, options: Options) -> torch.Tensor:
        key, value = read_span(self._pool, layer, span)
        own = query.narrow(1, span.first, span.count)
        return attend_sequence(own, key, value, span.start, options).transpose(0, 1)


class SpanPlace:
    """The Place of one row's sequence: its new tokens, and all that the pool holds of it."""

    def __init__(self, batch: Batch, span: Span, pool: KvPool) -> None:
        self.start = span.start
        self._span = span
        self._slots = batch.slots.narrow(0, span.first, span.count)
        self._pool = pool

    def keep(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[heads, count, size] in, [heads, span.end, size] out."""
        self._pool.write(layer, self._slots, key, value)
        return read_span(self._pool, layer, self._span)


def read_span(pool: KvPool, layer: int, span: Span) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [kv_heads, span.end, size] of all of a sequence's tokens."""
    if isinstance(span.where, int):
        return pool.view(layer, span.where, span.end)
    return pool.gather(layer, span.where, span.end)


def _slots(row: PlacedRow, block_tokens: int) -> list[int]:
    return [
        row.blocks[position // block_tokens] * block_tokens + position % block_tokens
        for position in range(row.start, row.end)
    ]


def _outputs(rows: Sequence[PlacedRow]) -> list[int]:
    ends = accumulate(row.end - row.start for row in rows)
    return [token for end, row in zip(ends, rows, strict=True) for token in range(end - row.outputs, end)]


def _spans(rows: Sequence[PlacedRow], block_tokens: int, device: torch.device) -> list[Span]:
    spans: list[Span] = []
    first = 0
    for row in rows:
        count = row.end - row.start
        spans.append(Span(first, count, row.start, row.end, _where(row, block_tokens, device)))
        first += count
    return spans


def _where(row: PlacedRow, block_tokens: int, device: torch.device) -> int | torch.Tensor:
    if row.consecutive:
        return row.blocks[0] * block_tokens
    used = row.blocks[: -(-row.end // block_tokens)]
    return torch.tensor(used, dtype=torch.int64).to(device)
