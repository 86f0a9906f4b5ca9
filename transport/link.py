"""Links over sockets: control on the event loop, data on blocking sockets with one thread per direction.

The sockets come ready: connected, TLS done, the certificate's node known (`endpoint` does that). Here they greet,
carry frames and end. Never torch; never a decision about what a message means.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, cast

from transport.connection import Connection, Role, State
from transport.contracts import Closed, DataSink, Received, TensorBuffer
from transport.data_socket import (
    CLOSE_GRACE_S,
    HELLO_DEADLINE_S,
    IDLE_LOOK_S,
    PIECE_BYTES,
    STALL_DEADLINE_S,
    Outbox,
    SocketThread,
    greet,
    prepare_socket,
    read_once,
)
from transport.errors import LinkClosedError, TransportError
from transport.framing import Allocate, heap_buffer
from transport.messages import Goodbye, Hello, Message
from transport.types import Address, NodeId

SEND_DEADLINE_S: Final = 10.0
_READ_BYTES: Final = 64 << 10


class TlsControlLink:
    """A `contracts.ControlLink` over asyncio streams. One task receives; any task of the loop may send."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Connection) -> None:
        self._reader = reader
        self._writer = writer
        self._connection = connection
        self._ended: TransportError | None = None

    @classmethod
    async def start(
        cls,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        own: Hello,
        peer_node: NodeId | None,
        deadline_s: float = HELLO_DEADLINE_S,
    ) -> TlsControlLink:
        """Exchange Hellos. Owns the streams from here on: when it raises, they are closed.

        Raises LinkClosedError (also for silence), RemoteProtocolError, IncompatibleError, TrustError.
        """
        link = cls(reader, writer, Connection(Role.CONTROL, own, peer_node))
        try:
            sock: socket.socket | None = writer.get_extra_info("socket")
            if sock is not None:
                prepare_socket(sock)
            async with asyncio.timeout(deadline_s):
                await link._write(link._connection.greeting())
                await link._next_received()
        except TimeoutError as error:
            link._abort()
            raise LinkClosedError("The other machine connected but did not say Hello.") from error
        except BaseException:
            link._abort()
            raise
        return link

    @property
    def hello(self) -> Hello:
        return self._connection.hello

    @property
    def address(self) -> Address:
        """Where the other side's connection comes from or goes to."""
        peer = self._writer.get_extra_info("peername")
        if not isinstance(peer, tuple):  # a socket pair has no address
            return Address("", 0)
        host, port, *_ = cast("tuple[str, int]", peer)
        return Address(host, port)

    async def send(self, message: Message) -> None:
        """Raises LinkClosedError, also when the other side takes nothing for SEND_DEADLINE_S; LocalProtocolError."""
        if self._ended:
            raise self._ended
        head, _ = self._connection.send(message)
        await self._write(head)

    async def receive(self) -> Message:
        """The next message. Raises LinkClosedError at the end, RemoteProtocolError on garbage; the same ever after.

        May be cancelled: nothing is lost.
        """
        if self._ended:
            raise self._ended
        try:
            received = await self._next_received()
        except TransportError as error:
            self._end(error)
            raise
        if isinstance(received.message, Goodbye):
            ended = LinkClosedError(received.message.reason or "The other machine closed the link.")
            self._end(ended)
            raise ended
        return received.message

    async def close(self, reason: str = "") -> None:
        """Say Goodbye and close, within CLOSE_GRACE_S. Again: no effect."""
        if self._ended:
            return
        try:
            async with asyncio.timeout(CLOSE_GRACE_S):
                with suppress(TransportError):
                    await self.send(Goodbye(reason))
                self._ended = LinkClosedError(reason or "The link was closed here.")
                self._writer.close()
                await self._writer.wait_closed()
        except (TimeoutError, OSError):
            pass
        finally:
            self._ended = self._ended or LinkClosedError("The link was closed here.")
            self._abort()

    async def _next_received(self) -> Received:
        parser = self._connection.parser
        while True:
            while (frame := parser.next_event()) is None:
                parser.feed(await self._read())
            received = self._connection.receive(frame)
            if received is not None:
                return received

    async def _read(self) -> bytes:
        deadline_s = STALL_DEADLINE_S if self._connection.parser.mid_frame else None
        try:
            async with asyncio.timeout(deadline_s):
                data = await self._reader.read(_READ_BYTES)
        except OSError as error:  # TimeoutError and ssl.SSLError too
            raise LinkClosedError(f"The link to the other machine broke: {str(error) or 'it fell silent'}.") from error
        if not data:
            raise LinkClosedError
        return data

    async def _write(self, data: bytes) -> None:
        try:
            async with asyncio.timeout(SEND_DEADLINE_S):
                self._writer.write(data)
                await self._writer.drain()
        except OSError as error:
            broken = LinkClosedError("The link to the other machine broke: it takes no more messages.")
            self._end(broken)
            raise broken from error

    def _end(self, error: TransportError) -> None:
        self._ended = self._ended or error
        self._abort()

    def _abort(self) -> None:
        self._writer.transport.abort()


class TlsDataSender:
    """A `contracts.DataSender` over a blocking socket that only its own thread touches."""

    def __init__(self, sock: socket.socket, connection: Connection, node: NodeId, on_closed: Closed) -> None:
        self._socket = sock
        self._connection = connection
        self._node = node
        self._on_closed = on_closed
        self._outbox = Outbox()
        self._thread = SocketThread(f"vtp-send {node[:8]}", sock, self._work, self._ended)

    @classmethod
    def start(
        cls,
        sock: socket.socket,
        own: Hello,
        expected: NodeId,
        on_closed: Closed,
        deadline_s: float = HELLO_DEADLINE_S,
    ) -> TlsDataSender:
        """Exchange Hellos in the caller's thread (it blocks), then start the sending thread.

        `sock` is a connected ssl.SSLSocket (any stream socket works). Raises LinkClosedError (also for silence),
        RemoteProtocolError, IncompatibleError, TrustError. Owns the socket from here on: when it raises, it is closed,
        and `on_closed` is never called; else `on_closed` is called exactly once, on the sending thread.
        """
        connection = Connection(Role.DATA_SENDER, own, expected)
        greet(sock, connection, deadline_s)
        sender = cls(sock, connection, expected, on_closed)
        sender._thread.start()
        return sender

    @property
    def hello(self) -> Hello:
        return self._connection.hello

    def send(self, epoch: int, number: int, message: Message, tensors: Sequence[TensorBuffer]) -> None:
        """Queue a frame, from any thread; the tensors' memory must not change until it has left.

        Raises LinkClosedError; LinkBusyError over MAX_QUEUED_FRAMES or MAX_QUEUED_BYTES; LocalProtocolError.
        """
        head, payload = self._connection.send(message, epoch, number, tensors)
        self._outbox.put([memoryview(head), *payload])

    def close(self) -> None:
        """Bring out what is queued, at most for CLOSE_GRACE_S, and say Goodbye; returns at once. Again: no effect."""
        self._outbox.close()
        self._thread.close(CLOSE_GRACE_S)

    @property
    def node(self) -> NodeId:
        """The one at the other end."""
        return self._node

    def hang_up(self) -> None:
        """End at once, without bringing anything out; does not wait. Again: no effect."""
        self._outbox.close()  # wakes the thread
        self._thread.close(0.0)

    def finish(self) -> None:
        """Close, and wait until the thread has ended."""
        self.close()
        self._thread.join()

    def _work(self) -> None:
        while True:
            try:
                pieces = self._outbox.take(IDLE_LOOK_S)
            except queue.Empty:
                self._look_back()
                continue
            if pieces is None:
                break
            self._write(pieces)
            self._outbox.sent(pieces)
            del pieces  # not to hold a tensor's memory while idle
        self._write([memoryview(self._connection.send(Goodbye(""))[0])])

    def _write(self, pieces: Sequence[memoryview]) -> None:
        """Each in parts of PIECE_BYTES, so that the stall deadline counts from the last progress."""
        for piece in pieces:
            for start in range(0, len(piece), PIECE_BYTES):
                self._socket.sendall(piece[start : start + PIECE_BYTES])

    def _look_back(self) -> None:
        """Notice the other side's end, which is all that can come back on this link."""
        self._socket.settimeout(0)
        with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while True:
                received = read_once(self._socket, self._connection)
                if received is not None:
                    raise LinkClosedError("The other machine closed the data link.")
        self._socket.settimeout(STALL_DEADLINE_S)

    def _ended(self, error: TransportError | None) -> None:
        self._outbox.drop()
        self._on_closed(self._node, error)


class TlsDataReceiver:
    """The receiving end of a data connection: one thread reads frames into their final memory, and calls the sink."""

    def __init__(self, sock: socket.socket, connection: Connection, node: NodeId, sink: DataSink) -> None:
        self._socket = sock
        self._connection = connection
        self._node = node
        self._sink = sink
        self._thread = SocketThread(f"vtp-receive {node[:8]}", sock, self._work, self._ended)
        self.ended = False

    @classmethod
    def start(
        cls,
        sock: socket.socket,
        own: Hello,
        peer_node: NodeId,
        sink: DataSink,
        allocate: Allocate = heap_buffer,
        deadline_s: float = HELLO_DEADLINE_S,
    ) -> TlsDataReceiver:
        """As `TlsDataSender.start`. `allocate` gives the memory of each payload, on the receiving thread.

        `sink.on_closed` is called exactly once, with None when either side closed on purpose. A TransportError
        raised by `sink.on_frame` ends the link with that error.
        """
        connection = Connection(Role.DATA_RECEIVER, own, peer_node, allocate=allocate)
        greet(sock, connection, deadline_s)
        receiver = cls(sock, connection, peer_node, sink)
        receiver._thread.start()
        return receiver

    @property
    def hello(self) -> Hello:
        return self._connection.hello

    @property
    def node(self) -> NodeId:
        """The one at the other end."""
        return self._node

    def hang_up(self) -> None:
        """As `close`, without waiting."""
        self._thread.close(0.0)

    def close(self) -> None:
        """Hang up at once and end the thread. Again: no effect."""
        self._thread.close(0.0)
        self._thread.join()

    def _work(self) -> None:
        self._socket.settimeout(IDLE_LOOK_S)
        silent_s = 0.0
        while self._connection.state is State.OPEN and not self._thread.closing:
            try:
                self._receive_some()
                silent_s = 0.0
            except TimeoutError:
                silent_s += IDLE_LOOK_S
                if self._connection.parser.mid_frame and silent_s >= STALL_DEADLINE_S:
                    raise

    def _receive_some(self) -> None:
        """One read. A function of its own, so that no local name holds a payload's memory while idle."""
        received = read_once(self._socket, self._connection)
        if received is not None and not isinstance(received.message, Goodbye):
            self._sink.on_frame(self._node, received)

    def _ended(self, error: TransportError | None) -> None:
        self.ended = True
        self._sink.on_closed(self._node, error)
