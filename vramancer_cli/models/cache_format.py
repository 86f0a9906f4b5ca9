"""What keys and values are held in: in the plan's dtype, or rounded to int8. Pure."""

from __future__ import annotations

from typing import Final

from transport.types import DTYPE_BYTES, CacheFormat

SCALE_BYTES: Final = DTYPE_BYTES["float32"]


def held_bytes(elements: int, vectors: int, element_bytes: int, kv_cache: CacheFormat) -> int:
    """Of `elements` elements in `vectors` keys and values, which take `element_bytes` each in the plan's dtype: in int8
    one each, and a float32 scale for each vector."""
    return elements * element_bytes if kv_cache == "plain" else elements + vectors * SCALE_BYTES
