"""Attention of single tokens over blocks, all short rows of a step in one native operator.

A token's result depends on its own query, keys and values only: not on its neighbours, nor on where its blocks lie, nor
on how many tokens of its sequence stand beside it. Must never know a step: tables and places are made by the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from vramancer_cli.engine import native
from vramancer_cli.engine.attention import Options
from vramancer_cli.engine.group_blocks import HeldTable
from vramancer_cli.engine.kv_cache import KvPool
from vramancer_cli.engine.kv_rows import PlainRows

MOST_ROW_TOKENS: Final = 16
"""Of a longer row the ordinary kernels make more, because its tokens share what they read."""
_DTYPES: Final = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class ShortRow:
    """`count` tokens at positions `start`..., counted from the first token of `table`."""

    table: HeldTable
    start: int
    count: int


class TokenPlaces:
    """Where short rows' tokens find what they attend to, in one cache group."""

    def __init__(self, rows: Sequence[ShortRow], block_tokens: int) -> None:
        self.tokens = sum(row.count for row in rows)
        self._rows = rows
        self._block_tokens = block_tokens
        most = max(len(row.table.blocks) for row in rows)
        blocks = [id_ for row in rows for id_ in (*row.table.blocks, *(0,) * (most - len(row.table.blocks)))]
        self._tables = torch.tensor(blocks, dtype=torch.int32).view(len(rows), most)
        self._places: dict[int | None, torch.Tensor] = {}  # by window

    def attend(self, pool: KvPool, layer: int, query: torch.Tensor, options: Options) -> torch.Tensor:
        """[heads, tokens, size] in, [tokens, heads, value size] out. Only where `reads`."""
        keys, values = pool.keys[layer], pool.values[layer]
        assert isinstance(keys, PlainRows) and isinstance(values, PlainRows)
        scaling = query.shape[-1] ** -0.5 if options.scaling is None else options.scaling
        places = self._within(options.sliding_window)
        return torch.ops.vramancer.attend_paged(
            query.transpose(0, 1), keys.slots, values.slots, self._tables, places, self._block_tokens, scaling,
            options.softcap or 0.0,
        )  # fmt: skip

    def _within(self, window: int | None) -> torch.Tensor:
        """[tokens, 3] int32: table, first position seen, end."""
        if window not in self._places:
            ends = [(number, row.start + k + 1) for number, row in enumerate(self._rows) for k in range(row.count)]
            places = [(number, 0 if window is None else max(0, end - window), end) for number, end in ends]
            self._places[window] = torch.tensor(places, dtype=torch.int32)
        return self._places[window]


def reads(pool: KvPool, layer: int, query: torch.Tensor, options: Options) -> bool:
    """Whether the operator is there, and can do what `options` ask for over what the layer keeps."""
    return (
        options.sinks is None
        and query.device.type == "cpu"
        and query.dtype in _DTYPES
        and query.stride(-1) == 1
        and isinstance(pool.keys[layer], PlainRows)
        and native.is_there()
    )
