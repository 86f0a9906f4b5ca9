"""What hidden states cross a link in: how many bytes each form takes, and which one is the fastest. Pure.

docs/activations.md has the bounds of the error, and the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from transport.types import DTYPE_BYTES, ActivationChoice, ActivationFormat

GROUP_ELEMENTS: Final[dict[ActivationFormat, int]] = {"int8": 128, "int4": 32}
"""So many elements of a row share a scale, which has the dtype of what was rounded."""
CODE_BITS: Final[dict[ActivationFormat, int]] = {"int8": 8, "int4": 4}
FEATURES: Final[dict[str, ActivationFormat]] = {"activations-int8": "int8", "activations-int4": "int4"}
"""How a Hello says which of them its node can have back."""
_GAIN: Final = 0.9
"""What a rounded step may take of a plain one's time at most, when nobody asked for rounding: figures waver."""


def crossing_bytes(plain_bytes: int, dtype: str, form: ActivationFormat) -> float:
    """What `plain_bytes` of `dtype` take in `form`, codes and scales."""
    if form == "plain":
        return plain_bytes
    element_bytes = DTYPE_BYTES[dtype]
    elements = plain_bytes / element_bytes
    return elements * (CODE_BITS[form] / 8 + element_bytes / GROUP_ELEMENTS[form])


def resolved(choice: ActivationChoice, dtype: str) -> ActivationChoice:
    """What a plan says where a person said `choice`: a float32 plan promises the same bits, so nothing is rounded
    there unless they asked for it."""
    return "plain" if choice == "auto" and dtype == "float32" else choice


def format_for(
    choice: ActivationChoice,
    known: Collection[ActivationFormat],
    dtype: str,
    plain_bytes: int,
    bytes_per_s: int,
    rounding_s: Callable[[ActivationFormat], float],
) -> ActivationFormat:
    """What a frame of hidden states crosses a link in.

    `known`: what both its ends know beside "plain". `bytes_per_s`: the link's measured speed, 0 before it was measured.
    `rounding_s`: seconds that rounding these takes, and having them back; asked only where there is something to gain.
    """
    if choice != "auto":
        return choice if choice in known else "plain"
    if "int8" not in known or bytes_per_s == 0:
        return "plain"
    plain_s, rounded_s = (crossing_bytes(plain_bytes, dtype, form) / bytes_per_s for form in ("plain", "int8"))
    if rounded_s > _GAIN * plain_s:
        return "plain"
    return "int8" if rounded_s + rounding_s("int8") < _GAIN * plain_s else "plain"
