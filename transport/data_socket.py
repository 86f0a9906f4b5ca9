"""What the data links of `link` are made of: a blocking socket, the thread that alone touches it, and its outbox.

Never asyncio, never a decision about what a message means.
"""

from __future__ import annotations

import queue
import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from transport.connection import Connection, State
from transport.contracts import Received
from transport.errors import LinkBusyError, LinkClosedError, TransportError

HELLO_DEADLINE_S: Final = 10.0
STALL_DEADLINE_S: Final = 30.0
"""A frame once begun may not stand still for longer. Between frames only the heartbeats decide."""
CLOSE_GRACE_S: Final = 0.5
"""What a link that closes on purpose gets to bring out what is queued."""
IDLE_LOOK_S: Final = 1.0
"""How often a waiting thread looks up: whether the other side has hung up, or this one wants to close."""
USER_TIMEOUT_MS: Final = 5000
MAX_QUEUED_FRAMES: Final = 64
MAX_QUEUED_BYTES: Final = 512 << 20
RECORD_BYTES: Final = 16 << 10
"""The most that a TLS record holds (RFC 8446, 5.1)."""
AT_ONCE_BYTES: Final = 64 << 10
"""What whoever sends it writes itself: some tens of microseconds of encryption."""


def prepare_socket(sock: socket.socket) -> None:
    """No Nagle delay; on Linux, five seconds without an acknowledgement end the connection (RFC 5482)."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)


def greet(sock: socket.socket, connection: Connection, deadline_s: float) -> None:
    """Exchange Hellos on a blocking socket; closes it when it raises."""
    give_up_s = time.monotonic() + deadline_s
    try:
        prepare_socket(sock)
        sock.settimeout(deadline_s)
        sock.sendall(connection.greeting())
        while connection.state is State.GREETING:
            read_once(sock, connection)
            left_s = give_up_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            sock.settimeout(left_s)
        sock.settimeout(STALL_DEADLINE_S)
    except TimeoutError as error:
        sock.close()
        raise LinkClosedError("The other machine connected but did not say Hello.") from error
    except OSError as error:
        sock.close()
        raise LinkClosedError(f"The data link broke: {error}.") from error
    except BaseException:
        sock.close()
        raise


def read_once(sock: socket.socket, connection: Connection) -> Received | None:
    """One `recv_into` where the parser wants it, and the message that it completes, if any.

    Raises LinkClosedError at the end, OSError, and what `Connection.receive` raises.
    """
    count = sock.recv_into(connection.parser.wanted())
    if count == 0:
        raise LinkClosedError
    frame = connection.parser.advance(count)
    return None if frame is None else connection.receive(frame)


def send_now(sock: socket.socket, pieces: list[memoryview]) -> list[memoryview]:
    """Write what the system takes without waiting, on a socket with timeout 0; gives what is left, to go on with.

    One `send` is at most one TLS record. A record that was taken in part is gone on with in the next call, which is
    why the rest has to come back exactly as it is. Raises OSError.
    """
    for at, piece in enumerate(pieces):
        sent = 0
        try:
            while sent < len(piece):
                sent += sock.send(piece[sent:])
        except (BlockingIOError, ssl.SSLWantWriteError):
            return [piece[sent:], *pieces[at + 1 :]]
    return []


def send_all(sock: socket.socket, pieces: list[memoryview]) -> None:
    """The same to the end, waiting for room. Raises OSError, TimeoutError after STALL_DEADLINE_S without any."""
    while pieces := send_now(sock, pieces):
        if not writable(sock, STALL_DEADLINE_S):
            raise TimeoutError


def writable(sock: socket.socket, within_s: float) -> bool:
    if sys.platform == "win32":  # there, select takes any socket; elsewhere, none of a number over 1023
        return bool(select.select([], [sock], [], within_s)[1])
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    return bool(poll.poll(within_s * 1000))


def gathered(head: bytes, payload: list[memoryview]) -> list[memoryview]:
    """A frame's pieces: one, copied together, where they fit into one TLS record, else each from its own memory."""
    size_bytes = len(head) + sum(map(len, payload))
    if payload and size_bytes <= RECORD_BYTES:
        return [memoryview(b"".join((head, *payload)))]
    return [memoryview(head), *payload]


WriteNow = Callable[[list[memoryview]], list[memoryview]]


class Outbox:
    """Frames on their way out, in order, bounded in number and bytes; one frame of any size always fits.

    A small one that nothing is before is written at once by whoever sends it (`write_now`, which gives what the system
    did not take): waking another thread takes longer than the write. All else waits for the one sending thread. So the
    socket has one user at a time: `put` while nothing is on its way, else the thread, until it says `sent`.
    """

    def __init__(self, write_now: WriteNow) -> None:
        self._write_now = write_now
        self._queue: queue.SimpleQueue[tuple[list[memoryview], int] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._frames = 0
        self._bytes = 0
        self._closed = False

    def put(self, pieces: list[memoryview], number: int = 0) -> bool:
        """The frame of step `number`. Whether all of it was written at once. Raises LinkClosedError, LinkBusyError."""
        size_bytes = sum(map(len, pieces))
        with self._lock:
            if self._closed:
                raise LinkClosedError
            if self._frames and (self._frames >= MAX_QUEUED_FRAMES or self._bytes + size_bytes > MAX_QUEUED_BYTES):
                raise LinkBusyError
            if self._frames or size_bytes > AT_ONCE_BYTES or (pieces := self._written(pieces)):
                self._frames += 1
                self._bytes += sum(map(len, pieces))
                self._queue.put((pieces, number))
                return False
            return True

    def _written(self, pieces: list[memoryview]) -> list[memoryview]:
        """What is left for the thread: all of it where the link is broken, which the thread will find and tell."""
        try:
            return self._write_now(pieces)
        except OSError:
            return pieces

    def take(self, timeout_s: float) -> tuple[list[memoryview], int] | None:
        """The next frame with its number, or None after the last of a closed outbox. Raises queue.Empty."""
        return self._queue.get(timeout=timeout_s)

    def sent(self, pieces: list[memoryview]) -> None:
        with self._lock:
            self._frames -= 1
            self._bytes -= sum(map(len, pieces))

    def while_idle(self, look: Callable[[], None]) -> None:
        """`look`, unless something is on its way: nothing is sent meanwhile."""
        with self._lock:
            if not self._frames:
                look()

    def close(self) -> None:
        """Nothing is written any more but by the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)

    def drop(self) -> None:
        """Close, and let go of everything that was not sent."""
        self.close()
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()


class SocketThread:
    """The one thread that reads or writes a data socket, and closes it. `ended` is called last, exactly once."""

    def __init__(
        self,
        name: str,
        sock: socket.socket,
        work: Callable[[], None],
        ended: Callable[[TransportError | None], None],
    ) -> None:
        self._socket = sock
        self._work = work
        self._ended = ended
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._timer: threading.Timer | None = None
        self.closing = False

    def start(self) -> None:
        self._thread.start()

    def close(self, grace_s: float) -> None:
        """Let the work finish by itself for `grace_s`, then hang up. Returns at once."""
        self.closing = True
        if grace_s <= 0:
            self._hang_up()
        elif self._timer is None and self._thread.is_alive():
            self._timer = threading.Timer(grace_s, self._hang_up)
            self._timer.daemon = True
            self._timer.start()

    def join(self) -> None:
        """Wait for the end after `close`; from the thread itself: no wait."""
        if threading.current_thread() is not self._thread:
            self._thread.join(IDLE_LOOK_S + 2 * CLOSE_GRACE_S)

    def _run(self) -> None:
        error: TransportError | None = LinkClosedError("The data link's thread failed.")  # a bug passes through
        try:
            self._work()
            error = None
        except TransportError as caught:
            error = caught
        except TimeoutError:
            error = LinkClosedError(f"The data link stood still for {STALL_DEADLINE_S:.0f} s in the middle of a frame.")
        except ssl.SSLEOFError:  # cut without a goodbye, as when the other process is killed
            error = LinkClosedError()
        except (OSError, MemoryError) as caught:
            error = LinkClosedError(f"The data link broke: {str(caught) or 'no memory for a frame'}.")
        finally:
            with self._lock:
                self._socket.close()
            if self._timer is not None:
                self._timer.cancel()
            self._ended(None if self.closing else error)

    def _hang_up(self) -> None:
        """Wake the thread out of a blocking call. `SSLSocket.shutdown` would also switch to plain text: go below it."""
        with self._lock, suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
