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
"""Of the time, that handing out may take while sequences run: `bench/bulk.py` shows what that leaves to them."""
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
    def turn(self) -> Generator[None]:
        """Waits for a turn, for the time of handing out one piece; what it takes is what the next ones wait for."""
        at_s = self._book()
        while self._is_busy() and (left_s := at_s - self._clock()) > 0:
            self._sleep(min(left_s, _LOOK_S))
        began_s = self._clock()
        yield
        took_s = self._clock() - began_s
        with self._lock:
            self._cost_s = _MEMORY * self._cost_s + (1 - _MEMORY) * took_s

    def _book(self) -> float:
        """When this turn is due, if it is still busy then."""
        with self._lock:
            now_s = self._clock()
            if not self._is_busy():
                self._next_s = now_s
                return now_s
            at_s = max(now_s, self._next_s)
            self._next_s = at_s + min(self._cost_s / BUSY_SHARE, MOST_PAUSE_S)
            return at_s
