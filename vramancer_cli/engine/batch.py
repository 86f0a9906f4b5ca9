"""One step as tensors: built once, then used by every layer of the stage.

Must never outlive its step, and never know what a layer computes around its attention.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, takewhile
from typing import Final

import torch

from vramancer_cli.engine.attention import Options, attend_parts, attend_sequence, reads_parts
from vramancer_cli.engine.block_tables import PlacedRow
from vramancer_cli.engine.group_blocks import HeldTable
from vramancer_cli.engine.kv_cache import KvPool
from vramancer_cli.engine.paged_tokens import MOST_ROW_TOKENS, ShortRow, TokenPlaces, reads

PART_TOKENS: Final = 2048
"""A token's attention reads longer contexts part by part, so that only parts whose blocks lie scattered are copied."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Where `tokens` tokens lie: `where` is the first of consecutive slots, else block ids, [n] int64 on the device."""

    tokens: int
    where: int | torch.Tensor


@dataclass(frozen=True, slots=True)
class Span:
    """A row's place in the batch: tokens [first, first + count); its sequence's K and V, from position `behind` on to
    `end`. In a window's group `behind` is the beginning of the first block held, else 0.

    `whole` is where all of them lie, `parts` the same cut into PART_TOKENS each; `parts` is empty unless there are
    several, the row has one token, and nothing lies behind.
    """

    first: int
    count: int
    start: int
    end: int
    whole: Stretch
    parts: tuple[Stretch, ...]
    behind: int = 0


NO_KEEPERS: Final[Mapping[int, int]] = {}


class Batch:
    """The AttentionContext of one step.

    `positions` [1, T] int64, `slots` [groups, T] int64 (where each new token's K and V go, by cache group), `outputs`
    [R] int64 (the index of each token whose final hidden state is wanted), all on the pool's device. `keepers`: layers
    that attend to what another layer keeps, and that layer. `native`: short rows at the beginning may be attended to by
    our own operator, where there is one; its bits are not those of torch.
    """

    def __init__(
        self,
        rows: Sequence[PlacedRow],
        pool: KvPool,
        device: torch.device,
        keepers: Mapping[int, int] = NO_KEEPERS,
        *,
        native: bool = False,
    ) -> None:
        self._pool = pool
        self._keepers = keepers
        short = list(takewhile(lambda row: row.end - row.start <= MOST_ROW_TOKENS, rows)) if native else []
        self._short_tokens = sum(row.end - row.start for row in short)
        positions = [position for row in rows for position in range(row.start, row.end)]
        groups = range(1 + len(rows[0].windows))
        slots = [[slot for row in rows for slot in _slots(row, group, pool.block_tokens)] for group in groups]
        both = torch.tensor([positions, *slots], dtype=torch.int64).to(device)
        self.positions, self.slots = both[:1], both[1:]
        # Both only where some layer needs them: by cache group, of each row, and of the short ones.
        self.spans = cache(lambda group: _spans(rows, group, pool.block_tokens, device))
        self._places = cache(lambda group: _places(short, group, pool.block_tokens))
        self.outputs = torch.tensor(_outputs(rows), dtype=torch.int64).to(device)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        """Keep the new K and V, then attend: token by token in short rows, the others row by row, so that no row feels
        its neighbours. Gives [T, heads, size]."""
        kept = self._keepers.get(layer, layer)
        group = self._pool.group(kept)
        if kept == layer:
            self._pool.write(layer, self.slots[group], key, value)
        short = self._short_tokens if self._short_tokens and reads(self._pool, kept, query, options) else 0
        parts = [self._attend_span(kept, span, query, options) for span in self._spans_from(group, short)]
        if short:
            own = query if short == query.shape[1] else query.narrow(1, 0, short)
            parts.insert(0, self._places(group).attend(self._pool, kept, own, options))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _spans_from(self, group: int, token: int) -> Sequence[Span]:
        """Those of the rows that begin at `token` or behind it."""
        if token == self.positions.shape[1]:
            return ()
        return [span for span in self.spans(group) if span.first >= token]

    def _attend_span(self, layer: int, span: Span, query: torch.Tensor, options: Options) -> torch.Tensor:
        own = query.narrow(1, span.first, span.count)
        if span.parts and reads_parts(own, *self._pool.sizes(layer), options):
            parts = (read(self._pool, layer, part) for part in span.parts)
            return attend_parts(own, parts, options).transpose(0, 1)
        key, value = read(self._pool, layer, span.whole)
        return attend_sequence(own, key, value, span.start - span.behind, options).transpose(0, 1)


def read(pool: KvPool, layer: int, stretch: Stretch) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [kv_heads, stretch.tokens, size]: as views where they lie together, else copied."""
    if isinstance(stretch.where, int):
        return pool.view(layer, stretch.where, stretch.tokens)
    return pool.gather(layer, stretch.where, stretch.tokens)


class SpanPlace:
    """The Place of one row's sequence: its new tokens, and all that the pool holds of it, in group 0."""

    def __init__(self, batch: Batch, span: Span, pool: KvPool) -> None:
        self.start = span.start
        self._span = span
        self._slots = batch.slots[0].narrow(0, span.first, span.count)
        self._pool = pool

    def keep(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[heads, count, size] in, [heads, span.end, size] out."""
        self._pool.write(layer, self._slots, key, value)
        return read(self._pool, layer, self._span.whole)


def _places(rows: Sequence[PlacedRow], group: int, block_tokens: int) -> TokenPlaces:
    tables = [(row, row.groups[group]) for row in rows]
    return TokenPlaces(
        [ShortRow(table, row.start - table.first * block_tokens, row.end - row.start) for row, table in tables],
        block_tokens,
    )


def _slots(row: PlacedRow, group: int, block_tokens: int) -> list[int]:
    table = row.groups[group]
    blocks, behind = table.blocks, table.first * block_tokens
    return [
        blocks[position // block_tokens] * block_tokens + position % block_tokens
        for position in range(row.start - behind, row.end - behind)
    ]


def _outputs(rows: Sequence[PlacedRow]) -> list[int]:
    ends = accumulate(row.end - row.start for row in rows)
    return [token for end, row in zip(ends, rows, strict=True) for token in range(end - row.outputs, end)]


def _spans(rows: Sequence[PlacedRow], group: int, block_tokens: int, device: torch.device) -> list[Span]:
    spans: list[Span] = []
    first = 0
    for row in rows:
        count, table = row.end - row.start, row.groups[group]
        behind = table.first * block_tokens
        whole = _stretch(table, 0, row.end - behind, block_tokens, device)
        parts = () if group or count > 1 else _parts(table, row.end, block_tokens, device)
        spans.append(Span(first, count, row.start, row.end, whole, parts, behind))
        first += count
    return spans


def _parts(table: HeldTable, end: int, block_tokens: int, device: torch.device) -> tuple[Stretch, ...]:
    if end <= PART_TOKENS:
        return ()
    size = max(1, PART_TOKENS // block_tokens) * block_tokens
    ends = [*range(size, end, size), end]
    return tuple(
        _stretch(table, start, stop, block_tokens, device) for start, stop in zip([0, *ends], ends, strict=False)
    )


def _stretch(table: HeldTable, start: int, end: int, block_tokens: int, device: torch.device) -> Stretch:
    """Where the table's tokens [start, end) lie; `start` begins a block."""
    used = table.blocks[start // block_tokens : -(-end // block_tokens)]
    if table.consecutive or used == tuple(range(used[0], used[0] + len(used))):
        return Stretch(end - start, used[0] * block_tokens)
    return Stretch(end - start, torch.tensor(used, dtype=torch.int64).to(device))
