"""Accepted connections until they say their first byte: one thread watches them all, so that silence costs others
nothing but one of the places here.

A thread, because an event loop on Windows cannot wait for bytes without taking them. Never TLS or messages here.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from transport.sockets import FIRST_BYTES_S

PLACES: Final = 64


class Doorstep:
    """Tells the event loop of each connection that says something (or ends); closes those that stay silent.

    When every place is taken, the one that has been silent longest is closed for the next. `on_word` is called on
    the loop and owns the socket from then on, also after `close`.
    """

    def __init__(
        self, on_word: Callable[[socket.socket], None], patience_s: float = FIRST_BYTES_S, places: int = PLACES
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_word = on_word
        self._patience_s = patience_s
        self._places = places
        self._arrivals = queue.Queue[socket.socket](places)
        self._silent_until: dict[socket.socket, float] = {}  # oldest first; the thread's alone
        self._selector = selectors.DefaultSelector()
        self._bell, self._rung = socket.socketpair()
        for end in (self._bell, self._rung):
            end.setblocking(False)
        self._selector.register(self._rung, selectors.EVENT_READ)
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="vrm-doorstep", daemon=True)
        self._thread.start()

    def take_in(self, sock: socket.socket) -> bool:
        """Watch this non-blocking socket from now on. False: not yet, the thread is behind; it stays the caller's."""
        try:
            self._arrivals.put_nowait(sock)
        except queue.Full:
            return False
        self._ring()
        return True

    def close(self) -> None:
        """Closes everyone who is still silent, and ends the thread. To be called once, on the loop."""
        self._closed = True
        self._ring()
        self._thread.join()
        for sock in (*self._silent_until, *self._waiting(), self._bell, self._rung):
            sock.close()
        self._selector.close()

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # then it rings already
            self._bell.send(b"\0")

    # --- on the thread --------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._closed:
            ready = [key.fileobj for key, _ in self._selector.select(self._pause_s())]
            for sock in ready:
                if isinstance(sock, socket.socket) and sock is not self._rung:
                    self._let_in(sock)
            self._turn_away_late()
            if self._rung in ready:
                self._rung.recv(4096)
                for sock in self._waiting():
                    self._seat(sock)

    def _waiting(self) -> list[socket.socket]:
        return [self._arrivals.get_nowait() for _ in range(self._arrivals.qsize())]

    def _seat(self, sock: socket.socket) -> None:
        if len(self._silent_until) >= self._places:
            self._give_up_on(next(iter(self._silent_until)))
        self._selector.register(sock, selectors.EVENT_READ)
        self._silent_until[sock] = time.monotonic() + self._patience_s

    def _pause_s(self) -> float | None:
        first = next(iter(self._silent_until.values()), None)
        return None if first is None else max(0.0, first - time.monotonic())

    def _turn_away_late(self) -> None:
        now = time.monotonic()
        for sock in [sock for sock, until in self._silent_until.items() if until <= now]:
            self._give_up_on(sock)

    def _give_up_on(self, sock: socket.socket) -> None:
        """Unless it has said something since the last look."""
        if _is_silent(sock):
            self._leave(sock)
            sock.close()
        else:
            self._let_in(sock)

    def _let_in(self, sock: socket.socket) -> None:
        self._leave(sock)
        self._loop.call_soon_threadsafe(self._on_word, sock)

    def _leave(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._silent_until[sock]


def _is_silent(sock: socket.socket) -> bool:
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
