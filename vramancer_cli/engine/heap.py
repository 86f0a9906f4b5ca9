"""The C library's heap while weights are loaded: what is freed goes back to the system at once.

Without it glibc raises the size from which a block gets pages of its own with each block that is freed, up to 32 MiB;
from then on the parts of converted and fused tensors fragment its heap, and the peak grows to 1.6 x the shard.
See mallopt(3). Nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_WHILE_LOADING_BYTES: Final = 256 << 10
_AFTERWARDS_BYTES: Final = 32 << 20
"""The most that glibc would choose by itself: while steps run, pages are better kept than faulted in again."""


@contextmanager
def giving_back() -> Generator[None]:
    """Around a load. Elsewhere than on glibc it does nothing."""
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_M_MMAP_THRESHOLD, _WHILE_LOADING_BYTES)
    library.mallopt(_M_TRIM_THRESHOLD, _WHILE_LOADING_BYTES)
    try:
        yield
    finally:
        library.malloc_trim(0)
        library.mallopt(_M_MMAP_THRESHOLD, _AFTERWARDS_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, 2 * _AFTERWARDS_BYTES)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
