"""One tensor of a checkpoint file, read by its byte range when it is asked for.

Read into memory of its own, not mapped: a mapped tensor would be outside the memory limit and would end the process
if the file shrank. Must never import transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from vramancer_cli.engine.tensors import byte_view
from vramancer_cli.errors import ModelError
from vramancer_cli.models.folder import one_line
from vramancer_cli.models.quantisation import Format

if TYPE_CHECKING:
    from vramancer_cli.engine.quant import QuantisedWeight

_COMPARED_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies: `start` and `size_bytes` within `path`."""

    name: str
    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size_bytes: int
    noted: Callable[[int], None] = field(default=lambda _size_bytes: None, kw_only=True, compare=False, repr=False)
    """Told `size_bytes` when the tensor has been read for a load."""

    def read(self) -> torch.Tensor:
        """A new CPU tensor with these bytes, and no other byte of the file read. Raises ModelError."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            self.fill(byte_view(tensor), file)
        return tensor

    def fill(self, view: memoryview, file: FileIO) -> None:
        """The file's next bytes into all of `view`. Raises ModelError."""
        while view:
            count = file.readinto(view)
            if not count:
                raise ModelError(f"{self.path.name} became shorter while it was read.")
            view = view[count:]

    def read_as(self, dtype: torch.dtype) -> StoredTensor:
        """Whose `read` gives `dtype` where there is a choice: what is stored in a float dtype is read as it is."""
        return self

    @property
    def packed_as(self) -> str:
        """The name of the format whose blocks are stored; "" for plain numbers."""
        return ""

    @property
    def packed_format(self) -> Format | None:
        """What `read_packed` gives; None where the stored blocks are not of a format that layers can be held in."""
        return None

    def read_packed(self) -> QuantisedWeight:
        """The stored blocks as a weight of `packed_format`, on the CPU. Raises ModelError."""
        raise ModelError(f"'{one_line(self.name)}' is not stored in blocks.")

    def same_bytes(self, other: StoredTensor) -> bool:
        """Whether both hold the same values, compared piece by piece."""
        if (self.dtype, self.shape, self.size_bytes) != (other.dtype, other.shape, other.size_bytes):
            return False
        with self.path.open("rb") as mine, other.path.open("rb") as theirs:
            mine.seek(self.start)
            theirs.seek(other.start)
            pieces = range(0, self.size_bytes, _COMPARED_BYTES)
            sizes = (min(_COMPARED_BYTES, self.size_bytes - first) for first in pieces)
            return all(mine.read(size) == theirs.read(size) for size in sizes)

    def __getitem__(self, index: Any) -> torch.Tensor:
        """What transformers' weight conversion asks of a lazy tensor: `stored[...]`."""
        values = self.read()[index]
        self.noted(self.size_bytes)
        return values
