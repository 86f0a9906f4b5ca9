"""One layer's keys, or its values, in blocks: held as they are, or rounded to int8 with a scale for each vector.

A token's slot is `block id * block_tokens + offset`. Must never know which block is whose.
"""

from __future__ import annotations

from typing import Final, Protocol

import torch

_MOST: Final = 127
"""Codes go from -127 to 127, so that a vector and its negative round alike."""

Shape = tuple[int, int, int, int]
"""Blocks, tokens of a block, heads, elements of a vector."""


class KvRows(Protocol):
    """Rows are [tokens, heads, size]; what is read is in the dtype that was asked for at the beginning."""

    @property
    def size(self) -> int:
        """Elements of a vector."""
        ...

    @property
    def nbytes(self) -> int: ...

    def write(self, slots: torch.Tensor, rows: torch.Tensor) -> None:
        """Put `rows` into the slots [T] (int64, no slot twice)."""
        ...

    def view(self, first_slot: int, tokens: int) -> torch.Tensor:
        """Of consecutive slots."""
        ...

    def gather(self, blocks: torch.Tensor, tokens: int) -> torch.Tensor:
        """The first `tokens` of the blocks [n] (int64), one after the other."""
        ...

    def copy(self, source: int, target: int) -> None:
        """A whole block."""
        ...


class PlainRows:
    """As they are: a view is a view. `slots`: [slots, heads, size]."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.size = shape[-1]
        self.blocks = torch.empty(shape, dtype=dtype, device=device)
        self.slots = self.blocks.flatten(0, 1)

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes

    def write(self, slots: torch.Tensor, rows: torch.Tensor) -> None:
        self.slots.index_copy_(0, slots, rows)

    def view(self, first_slot: int, tokens: int) -> torch.Tensor:
        return self.slots.narrow(0, first_slot, tokens)

    def gather(self, blocks: torch.Tensor, tokens: int) -> torch.Tensor:
        return self.blocks.index_select(0, blocks).flatten(0, 1)[:tokens]

    def copy(self, source: int, target: int) -> None:
        self.blocks[target].copy_(self.blocks[source])


class RoundedRows:
    """Rounded as they are written: the largest magnitude of a vector becomes 127. What is read is a copy."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.size = shape[-1]
        self._dtype = dtype
        self._codes = PlainRows(shape, torch.int8, device)
        self._scales = PlainRows((*shape[:-1], 1), torch.float32, device)

    @property
    def nbytes(self) -> int:
        return self._codes.nbytes + self._scales.nbytes

    def write(self, slots: torch.Tensor, rows: torch.Tensor) -> None:
        exact = rows.float()
        scales = exact.abs().amax(-1, keepdim=True) / _MOST
        # Where all elements are zero any scale will do.
        codes = (exact / scales.clamp(min=torch.finfo(torch.float32).tiny)).round_().to(torch.int8)
        self._codes.write(slots, codes)
        self._scales.write(slots, scales)

    def view(self, first_slot: int, tokens: int) -> torch.Tensor:
        return self._exact(self._codes.view(first_slot, tokens), self._scales.view(first_slot, tokens))

    def gather(self, blocks: torch.Tensor, tokens: int) -> torch.Tensor:
        return self._exact(self._codes.gather(blocks, tokens), self._scales.gather(blocks, tokens))

    def copy(self, source: int, target: int) -> None:
        self._codes.copy(source, target)
        self._scales.copy(source, target)

    def _exact(self, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        return codes * scales.to(self._dtype)
