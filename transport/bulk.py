"""Bulk links: one end asks for pieces of a model's weights, the other answers.

Blocking sockets, one thread at each end. The sockets come ready, as in `link`. Never torch; never which pieces there
are, or who may have them.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from transport.connection import Connection, Role, State
from transport.contracts import BulkSource, Received, TensorBuffer
from transport.data_socket import (
    HELLO_DEADLINE_S,
    IDLE_LOOK_S,
    STALL_DEADLINE_S,
    SocketThread,
    greet,
    read_once,
)
from transport.errors import LinkClosedError, TransportError
from transport.messages import Goodbye, Hello, Message
from transport.types import NodeId

ANSWER_DEADLINE_S: Final = 120.0
"""Many may wait for their turn at the other end, while it has better things to do."""
IDLE_DEADLINE_S: Final = 60.0
"""A caller that asks for nothing loses its place."""


class TlsBulkLink:
    """A `contracts.BulkLink` over a blocking socket."""

    def __init__(self, sock: socket.socket, connection: Connection) -> None:
        self._socket = sock
        self._connection = connection
        self._lock = threading.Lock()

    @classmethod
    def start(
        cls, sock: socket.socket, own: Hello, expected: NodeId, deadline_s: float = HELLO_DEADLINE_S
    ) -> TlsBulkLink:
        """Exchange Hellos. Owns the socket from here on: when it raises, it is closed.

        Raises LinkClosedError, RemoteProtocolError, IncompatibleError, TrustError.
        """
        connection = Connection(Role.BULK_CALLER, own, expected)
        greet(sock, connection, deadline_s)
        sock.settimeout(ANSWER_DEADLINE_S)
        return cls(sock, connection)

    def ask(self, request: Message) -> None:
        head, _ = self._connection.send(request)
        try:
            self._socket.sendall(head)
        except OSError as error:
            raise _broken(error) from error

    def answer(self) -> Received:
        received = None
        while received is None:
            try:
                received = read_once(self._socket, self._connection)
            except OSError as error:
                raise _broken(error) from error
        if isinstance(received.message, Goodbye):
            raise LinkClosedError(received.message.reason or "The other machine closed the bulk link.")
        return received

    def hang_up(self) -> None:
        with self._lock, suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)  # below TLS, which another thread may be using

    def close(self) -> None:
        """For the asking thread, once it asks no more. Again: no effect."""
        with self._lock:
            self._socket.close()


class BulkServing:
    """The answering end: one thread reads requests, and has each answered before it reads the next."""

    def __init__(self, sock: socket.socket, connection: Connection, node: NodeId, source: BulkSource) -> None:
        self._socket = sock
        self._connection = connection
        self._source = source
        self._thread = SocketThread(f"vtp-bulk {node[:8]}", sock, self._work, self._ended)
        self.node = node
        self.ended = False

    @classmethod
    def start(
        cls,
        sock: socket.socket,
        own: Hello,
        peer_node: NodeId,
        source: BulkSource,
        deadline_s: float = HELLO_DEADLINE_S,
    ) -> BulkServing:
        """As `TlsBulkLink.start`, then start the thread."""
        connection = Connection(Role.BULK_SERVER, own, peer_node)
        greet(sock, connection, deadline_s)
        serving = cls(sock, connection, peer_node, source)
        serving._thread.start()
        return serving

    def hang_up(self) -> None:
        """End at once, without waiting. Again: no effect."""
        self._thread.close(0.0)

    def close(self) -> None:
        """Hang up, and end the thread. Again: no effect."""
        self.hang_up()
        self._thread.join()

    def _work(self) -> None:
        silent_s = 0.0
        while self._connection.state is State.OPEN and not self._thread.closing:
            self._socket.settimeout(IDLE_LOOK_S)
            try:
                request = read_once(self._socket, self._connection)
                silent_s = 0.0
            except TimeoutError:
                silent_s += IDLE_LOOK_S
                if silent_s >= IDLE_DEADLINE_S:
                    raise
                continue
            if request is not None and not isinstance(request.message, Goodbye):
                self._socket.settimeout(STALL_DEADLINE_S)
                self._source.serve(self.node, request.message, self._answer)

    def _answer(self, message: Message, tensors: Sequence[TensorBuffer] = ()) -> None:
        head, payload = self._connection.send(message, 0, 0, tensors)
        for piece in (memoryview(head), *payload):
            self._socket.sendall(piece)

    def _ended(self, _error: TransportError | None) -> None:
        self.ended = True


def _broken(error: OSError) -> LinkClosedError:
    if isinstance(error, TimeoutError):
        return LinkClosedError(f"The other machine did not answer within {ANSWER_DEADLINE_S:.0f} s.")
    return LinkClosedError(f"The bulk link broke: {str(error) or 'it was cut'}.")
