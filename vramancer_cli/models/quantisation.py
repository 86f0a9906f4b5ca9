"""What a quantised weight takes in each format, in bytes. Pure.

The engine holds weights in exactly these bytes, whichever kernel multiplies them. Never torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from transport.types import DTYPE_BYTES, WeightFormat

GROUP: Final = 32
"""Weights of one output that share a scale and an offset in int4."""
_INT8_ROW_BYTES: Final = DTYPE_BYTES["float32"]
"""One scale per output."""
_INT4_GROUP_BYTES: Final = GROUP // 2 + 2 * DTYPE_BYTES["bfloat16"]
"""Two codes in a byte, a scale and an offset."""
TRIED_ELEMENTS: Final = 1 << 22
"""Of larger weights, a node tries its kernels on a part of this many elements."""
_TRIED_ELEMENT_BYTES: Final = 16
"""A sample in float32, its quantised form, what a kernel makes of that, and what it is compared with."""


@dataclass(frozen=True, slots=True)
class Quantisable:
    """The weights of one layer that a format may hold: their elements and their outputs (rows), all together, and the
    elements of the largest one.

    Every row is a whole number of groups long.
    """

    parameters: int = 0
    rows: int = 0
    largest: int = 0

    def __add__(self, other: Quantisable) -> Quantisable:
        """Both together."""
        largest = max(self.largest, other.largest)
        return Quantisable(self.parameters + other.parameters, self.rows + other.rows, largest)

    def held_bytes(self, quantize: WeightFormat) -> int:
        """What they take in the format `quantize`, which is not "none"."""
        if quantize == "int8":
            return self.parameters + self.rows * _INT8_ROW_BYTES
        return self.parameters // GROUP * _INT4_GROUP_BYTES

    def quantising_bytes(self, layer_parameters: int, dtype: str, stored_dtype: str) -> int:
        """What a layer takes, beside its quantised weights, while they are made of it.

        The layer in `dtype`, and as stored where that differs; and the largest weight's codes while a kernel packs
        them, or what trying the kernels takes before.
        """
        stored_bytes = DTYPE_BYTES[stored_dtype] if stored_dtype != dtype else 0
        tried_bytes = min(self.largest, TRIED_ELEMENTS) * _TRIED_ELEMENT_BYTES
        return layer_parameters * (DTYPE_BYTES[dtype] + stored_bytes) + max(self.largest, tried_bytes)
