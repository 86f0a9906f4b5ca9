"""Tensors of a GGUF file as any checkpoint's: read by their byte range, dequantised, laid out as in transformers.

What llama.cpp did to a family's values when it wrote the file (rotary rows interleaved, norms plus one) is undone by
transformers' own tensor processors. Must never build a model or read the metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

from vramancer_cli.engine.gguf_blocks import FORMATS, taken_over
from vramancer_cli.engine.gguf_file import GgufHead
from vramancer_cli.engine.quant import QuantisedWeight
from vramancer_cli.engine.stored_tensor import StoredTensor
from vramancer_cli.engine.tensors import byte_view
from vramancer_cli.errors import ModelError
from vramancer_cli.models.folder import one_line
from vramancer_cli.models.quantisation import GROUP, Format

GGUF_ARCHITECTURE: Final = "gguf_architecture"
"""In config.json: what the file calls `general.architecture`."""
PLAIN: Final = {Kind.F32: torch.float32, Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
PACKED: Final = frozenset({
    Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K,
    Kind.IQ4_NL, Kind.IQ4_XS,
})  # fmt: skip
UNPACKED_DTYPE: Final = torch.bfloat16
"""What packed weights count as where nobody chose a dtype: what they were made from, mostly."""
_AT_ONCE_ELEMENTS: Final = 1 << 20
"""Dequantised at once in float32, before they become the dtype that is asked for."""

Restore = Callable[[str, torch.Tensor], torch.Tensor]
"""(name in the file, values as written) -> values as transformers' model has them."""


@dataclass(frozen=True)
class GgufTensor(StoredTensor):
    """A tensor under its name in transformers. `shape` is the values', `size_bytes` that of the stored blocks."""

    kind: Kind
    gguf_name: str
    restore: Restore

    def read(self) -> torch.Tensor:
        """The values in `dtype`, on the CPU: from float32 in one rounding where they are packed. Raises ModelError."""
        values = self._unpacked() if self.kind in PACKED else super().read()
        return self.restore(self.gguf_name, values)

    def read_as(self, dtype: torch.dtype) -> StoredTensor:
        return replace(self, dtype=dtype) if self.kind in PACKED else self

    @property
    def packed_format(self) -> Format | None:
        """Only of matrices whose values transformers has as they were written, but for the order of their rows."""
        known = FORMATS.get(self.kind) if len(self.shape) == 2 else None
        return known if known and self._row_order() is not None else None

    def read_packed(self) -> QuantisedWeight:
        order = self._row_order()
        assert order is not None
        blocks = torch.empty((self.shape[0], self.size_bytes // self.shape[0]), dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            self.fill(byte_view(blocks), file)
        return taken_over(blocks[order].view(self.shape[0], self.shape[1] // GROUP, -1), self.kind)

    def _row_order(self) -> torch.Tensor | None:
        """int64 [N]: from which row of the file each one comes; None where `restore` does more than move rows."""
        numbers = torch.arange(self.shape[0])
        order = self.restore(self.gguf_name, numbers[:, None].clone())
        moved = order.dtype == torch.int64 and order.shape == (self.shape[0], 1)
        return order[:, 0] if moved and torch.equal(order[:, 0].sort().values, numbers) else None

    @property
    def packed_as(self) -> str:
        return self.kind.name if self.kind in PACKED else ""

    def _unpacked(self) -> torch.Tensor:
        values = torch.empty(self.shape, dtype=self.dtype)
        rows = values.view(-1, self.shape[-1])
        row_bytes = self.size_bytes // rows.shape[0]
        at_once = max(1, _AT_ONCE_ELEMENTS // rows.shape[1])
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            for first in range(0, rows.shape[0], at_once):
                some = rows[first : first + at_once]
                blocks = np.empty((some.shape[0], row_bytes), dtype=np.uint8)
                self.fill(blocks.reshape(-1).data, file)
                with np.errstate(invalid="ignore"):  # scales that are not finite show in the first logits
                    some.copy_(torch.from_numpy(gguf.dequantize(blocks, self.kind)))
        return values


def tensors_in(head: GgufHead, config: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[GgufTensor]:
    """The tensors that `names` knows (name in the file -> name in transformers). Raises ModelError.

    What was done to them is told by the architecture in `config`: later parts of a split model do not say it.
    """
    restore = _restorer(str(config.get(GGUF_ARCHITECTURE)), config)
    for entry in head.entries:
        if entry.kind not in PLAIN and entry.kind not in PACKED:
            raise ModelError(
                f"'{one_line(entry.name)}' in {head.path.name} is stored as {entry.kind.name}, which VRAMancer cannot "
                "read yet.",
                hint="Use a version of the file in Q8_0, Q4_K_M or another common type.",
            )
        if entry.name in names:
            dtype = PLAIN.get(entry.kind, UNPACKED_DTYPE)
            place = (head.path, dtype, entry.shape, entry.start, entry.size_bytes)
            yield GgufTensor(names[entry.name], *place, entry.kind, entry.name, restore)


def _restorer(architecture: str, config: Mapping[str, Any]) -> Restore:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor  # only where there is GGUF

    processor: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=dict(config))

    def restore(name: str, values: torch.Tensor) -> torch.Tensor:
        try:
            restored: torch.Tensor = processor.process(values, name=name).weights
        except (ArithmeticError, RuntimeError, TypeError) as error:
            raise ModelError(f"'{one_line(name)}' does not have the shape that the file's metadata says.") from error
        return restored.contiguous()

    return restore
