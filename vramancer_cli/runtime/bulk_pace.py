"""How fast weights are handed out: as fast as can be, but while sequences run only for a small share of the time.

Turns are given in the order of asking, so that many who ask get equal shares. Standard library only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

BUSY_SHARE: Final = 0.05
"""Of the time, that handing out may take while sequences run: on a slow network this decides."""
BUSY_BYTES_PER_S: Final = 8 << 20
"""The most that is handed out while sequences run: on a fast network this decides, for it is the ends that have work
then (TLS, hashing, writing). `bench/bulk.py` shows what the two leave to a sequence."""
MOST_PAUSE_S: Final = 2.0
"""Between two turns: the other ends wait with a deadline, perhaps many of them at once."""
_FIRST_COST_S: Final = 0.02
_MEMORY: Final = 0.8
_LOOK_S: Final = 0.05


class BulkPace:
    """`is_busy` is asked from any thread."""

    def __init__(
        self,
        is_busy: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._is_busy = is_busy
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._cost_s = _FIRST_COST_S  # of a turn lately
        self._next_s = 0.0

    @contextmanager
    def turn(self, size_bytes: int) -> Generator[None]:
        """Waits for a turn to hand out so much; what it takes is what the next ones wait for."""
        at_s = self._book(size_bytes)
        while self._is_busy() and (left_s := at_s - self._clock()) > 0:
            self._sleep(min(left_s, _LOOK_S))
        began_s = self._clock()
        yield
        took_s = self._clock() - began_s
        with self._lock:
            self._cost_s = _MEMORY * self._cost_s + (1 - _MEMORY) * took_s

    def _book(self, size_bytes: int) -> float:
        """When this turn is due, if it is still busy then."""
        with self._lock:
            now_s = self._clock()
            if not self._is_busy():
                self._next_s = now_s
                return now_s
            at_s = max(now_s, self._next_s)
            pause_s = max(self._cost_s / BUSY_SHARE, size_bytes / BUSY_BYTES_PER_S)
            self._next_s = at_s + min(pause_s, MOST_PAUSE_S)
            return at_s
