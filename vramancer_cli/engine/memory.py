"""The memory limit of a node, kept by counting: what is not reserved here is never allocated.

Standard library only; must never import torch, so that the count cannot depend on what an allocator says afterwards.
"""

from __future__ import annotations

import threading
from types import TracebackType

from vramancer_cli.errors import OverLimitError

_GIB = 1 << 30


class Reservation:
    """Bytes taken from a budget; `close` gives them back once, however often it is called."""

    def __init__(self, budget: MemoryBudget, what: str, size_bytes: int) -> None:
        self.what = what
        self.size_bytes = size_bytes
        self._budget: MemoryBudget | None = budget

    def close(self) -> None:
        budget, self._budget = self._budget, None
        if budget is not None:
            budget.give_back(self.size_bytes)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class MemoryBudget:
    """At most `limit_bytes` reserved at any time. Every method may be called from any thread."""

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes <= 0:
            raise ValueError("a memory limit must be positive")
        self.limit_bytes = limit_bytes
        self._used_bytes = 0
        self._lock = threading.Lock()

    @property
    def used_bytes(self) -> int:
        with self._lock:
            return self._used_bytes

    def reserve(self, what: str, size_bytes: int) -> Reservation:
        """Take `size_bytes` for `what`, before anything is allocated.

        Raises OverLimitError with `needed_bytes` and the `present_bytes` that are still free under the limit.
        """
        if size_bytes < 0:
            raise ValueError("cannot reserve less than nothing")
        with self._lock:
            present_bytes = self.limit_bytes - self._used_bytes
            if size_bytes > present_bytes:
                raise _over_limit(what, size_bytes, present_bytes, self.limit_bytes)
            self._used_bytes += size_bytes
        return Reservation(self, what, size_bytes)

    def give_back(self, size_bytes: int) -> None:
        """For Reservation.close only."""
        with self._lock:
            self._used_bytes -= size_bytes


def _over_limit(what: str, needed_bytes: int, present_bytes: int, limit_bytes: int) -> OverLimitError:
    return OverLimitError(
        f"{what} needs {_gib(needed_bytes)}, but only {_gib(present_bytes)} of the {_gib(limit_bytes)} limit are free.",
        needed_bytes=needed_bytes,
        present_bytes=present_bytes,
    )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / _GIB:.3f} GiB" if size_bytes < _GIB else f"{size_bytes / _GIB:.1f} GiB"
