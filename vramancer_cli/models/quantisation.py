"""What a quantised weight is held in, and what it takes there, in bytes. Pure.

The engine holds weights in exactly these bytes, whichever kernel multiplies them. Never torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from transport.types import DTYPE_BYTES, WeightFormat

GROUP: Final = 32
"""The smallest group of weights of an output that share a scale. It divides every row that is quantised."""
_ROW_SCALE_BYTES: Final = DTYPE_BYTES["float32"]
"""One scale per output."""
_GROUP_SCALE_BYTES: Final = 4
"""Of a group: a scale and an offset of two bytes each, or a float32 scale."""
TRIED_ELEMENTS: Final = 1 << 22
"""Of larger weights, a node tries its kernels on a part of this many elements."""
_TRIED_ELEMENT_BYTES: Final = 16
"""A sample in float32, its quantised form, what a kernel makes of that, and what it is compared with."""
_TAKEN_ELEMENT_BYTES: Final = 5
"""Of a weight that is taken over as it is stored: the file's blocks, their codes in the layer's order, and repacked."""


class Format(NamedTuple):
    """Codes of `bits`, and what scales them: each `group` of weights of an output, or (0) the whole output."""

    bits: int
    group: int

    def __str__(self) -> str:
        return f"int{self.bits}" + (f" in groups of {self.group}" if self.group else "")

    def held_bytes(self, outputs: int, inputs: int) -> int:
        scales_bytes = inputs // self.group * _GROUP_SCALE_BYTES if self.group else _ROW_SCALE_BYTES
        return outputs * (inputs * self.bits // 8 + scales_bytes)


INT8: Final = Format(8, 0)
INT8_GROUPED: Final = Format(8, GROUP)
INT4: Final = Format(4, GROUP)
_ROUNDED_TO: Final[dict[WeightFormat, Format]] = {
    "int8": INT8, "int4": INT4, "int4-64": Format(4, 64), "int4-128": Format(4, 128),
}  # fmt: skip


def weight_format(chosen: Literal["auto"] | WeightFormat, is_stored_packed: bool) -> WeightFormat:
    """What a person's choice means for one checkpoint: "auto" takes over what can be, and rounds nothing."""
    if chosen == "auto":
        return "stored" if is_stored_packed else "none"
    return chosen


def format_of(quantize: WeightFormat, inputs: int, stored: Format | None = None) -> Format | None:
    """What a plan holds a weight in, whose rows are `inputs` long, a multiple of 32; None: in the plan's dtype.

    `stored`: what the checkpoint has it in, where that can be taken over without loss. That is kept wherever the plan
    asks for no fewer bits. A group that is no part of the row is halved until it is.
    """
    wanted = _ROUNDED_TO.get(quantize)
    if quantize == "none" or wanted is None:
        return stored if quantize == "stored" else None
    if stored is not None and stored.bits <= wanted.bits:
        return stored
    group = wanted.group
    while group and inputs % group:
        group //= 2
    return Format(wanted.bits, group)


def head_format(quantize: WeightFormat) -> Format | None:
    """What a plan holds an output head in that is a weight of its own; None: in the plan's dtype.

    In eight bits also where layers are held in four: each logit is one product, whose error nothing evens out.
    """
    return INT8 if quantize in _ROUNDED_TO else None


@dataclass(frozen=True, slots=True)
class Quantisable:
    """Weights of one shape that a format may hold: `count` of [outputs, inputs], inputs a multiple of 32."""

    outputs: int
    inputs: int
    count: int = 1
    stored: Format | None = None

    @property
    def largest(self) -> int:
        """Elements of one."""
        return self.outputs * self.inputs

    @property
    def parameters(self) -> int:
        return self.count * self.largest

    def held_bytes(self, quantize: WeightFormat, dtype: str) -> int:
        held = format_of(quantize, self.inputs, self.stored)
        if held is None:
            return self.parameters * DTYPE_BYTES[dtype]
        return self.count * held.held_bytes(self.outputs, self.inputs)

    def is_taken_over(self, quantize: WeightFormat) -> bool:
        """Whether it is held as the checkpoint has it, and never in the plan's dtype."""
        return self.stored is not None and format_of(quantize, self.inputs, self.stored) == self.stored


def head_saved_bytes(head: Quantisable | None, quantize: WeightFormat, dtype: str) -> int:
    """How much less an output head takes than in `dtype`."""
    held = None if head is None else head_format(quantize)
    if head is None or held is None:
        return 0
    return head.parameters * DTYPE_BYTES[dtype] - held.held_bytes(head.outputs, head.inputs)


def head_quantising_bytes(head: Quantisable | None, quantize: WeightFormat, dtype: str, stored_dtype: str) -> int:
    """What it takes, beside the quantised head, while that is made."""
    if head is None or head_format(quantize) is None:
        return 0
    return quantising_bytes((head,), "int8", head.parameters, dtype, stored_dtype)


def saved_bytes(parts: Iterable[Quantisable], quantize: WeightFormat, dtype: str) -> int:
    """How much less a layer's weights take than in `dtype`."""
    return sum(part.parameters * DTYPE_BYTES[dtype] - part.held_bytes(quantize, dtype) for part in parts)


def quantising_bytes(
    parts: Sequence[Quantisable], quantize: WeightFormat, layer_parameters: int, dtype: str, stored_dtype: str
) -> int:
    """What a layer takes, beside its quantised weights, while they are made of it.

    What is rounded or stays plain, in `dtype`, and as stored where that differs; and the largest weight's codes while
    a kernel packs them, or what trying the kernels takes before.
    """
    taken = [part for part in parts if part.is_taken_over(quantize)]
    plain = layer_parameters - sum(part.parameters for part in taken)
    stored_bytes = DTYPE_BYTES[stored_dtype] if stored_dtype != dtype else 0
    largest = max((part.largest for part in parts), default=0)
    beside_bytes = max((part.largest * _TAKEN_ELEMENT_BYTES for part in taken), default=largest)
    tried_bytes = min(largest, TRIED_ELEMENTS) * _TRIED_ELEMENT_BYTES
    return plain * (DTYPE_BYTES[dtype] + stored_bytes) + max(largest, beside_bytes, tried_bytes)
