"""Memory for large payloads that is used again: fresh pages cost as much time as receiving into them (`bench/link`).

Never sockets, threads, or what the bytes mean.
"""

from __future__ import annotations

import sys
from typing import Final

from transport.framing import heap_buffer

LEAST_BYTES: Final = 1 << 20
"""Smaller payloads the heap gives from warm pages by itself."""
MOST_KEPT_BYTES: Final = 128 << 20
"""What may lie here unused."""
_IDLE_REFERENCES: Final = 3
"""The list's, the loop's and that of the question itself."""


class WarmMemory:
    """A `framing.Allocate`, for one link and its thread: it ends with them.

    A buffer is given out again once nobody holds a view of it: every view, slice and tensor on it holds a reference.
    """

    def __init__(self) -> None:
        self._kept: list[bytearray] = []

    def __call__(self, size_bytes: int) -> memoryview:
        if size_bytes < LEAST_BYTES:
            return heap_buffer(size_bytes)
        return memoryview(self._idle(size_bytes) or self._new(size_bytes))[:size_bytes]

    def _idle(self, size_bytes: int) -> bytearray | None:
        """One that is large enough, and not so large that most of it would be of no use."""
        for buffer in self._kept:
            if size_bytes <= len(buffer) <= 2 * size_bytes and sys.getrefcount(buffer) == _IDLE_REFERENCES:
                return buffer
        return None

    def _new(self, size_bytes: int) -> bytearray:
        """The oldest ones make room for it, whoever holds them: those are only not used again."""
        fresh = bytearray(size_bytes)
        while self._kept and sum(map(len, self._kept)) + size_bytes > MOST_KEPT_BYTES:
            del self._kept[0]
        if size_bytes <= MOST_KEPT_BYTES:
            self._kept.append(fresh)
        return fresh
