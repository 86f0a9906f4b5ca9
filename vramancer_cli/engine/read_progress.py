"""How many of a load's bytes have been read, told tensor by tensor.

Must never read anything itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from vramancer_cli.engine.stored_tensor import StoredTensor

Progress = Callable[[int, int], None]
"""(bytes read, bytes in all), as stored."""

_MOST_REPORTS: Final = 200
"""A mixture of experts has thousands of small tensors; nobody can see more steps than these."""


class ReadProgress:
    """Tells `progress` at the start, after tensors, and at the end; from whichever thread has read one."""

    def __init__(self, total_bytes: int, progress: Progress) -> None:
        self._total_bytes, self._progress = total_bytes, progress
        self._read_bytes = self._told_bytes = 0
        self._lock = threading.Lock()
        progress(0, total_bytes)

    def counted(self, tensor: StoredTensor) -> StoredTensor:
        """The same tensor; that it has been read is noted here."""
        return replace(tensor, noted=self._note)

    def _note(self, size_bytes: int) -> None:
        with self._lock:
            self._read_bytes += size_bytes
            if self._read_bytes - self._told_bytes > self._total_bytes // _MOST_REPORTS:
                self._tell(self._read_bytes)

    def end(self) -> None:
        """All that is needed has been read."""
        if self._told_bytes < self._total_bytes:
            self._tell(self._total_bytes)

    def _tell(self, read_bytes: int) -> None:
        self._told_bytes = read_bytes
        self._progress(read_bytes, self._total_bytes)
