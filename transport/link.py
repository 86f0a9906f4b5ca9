"""Links over sockets: control on the event loop, data on blocking sockets with one thread per direction.

The sockets come ready: connected, TLS done, the certificate's node known (`endpoint` does that). Here they greet,
carry frames and end. Never torch; never a decision about what a message means.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import ssl
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final, cast

from transport.connection import Connection, Role, State
from transport.contracts import Closed, DataSink, OnSent, Received, TensorBuffer
from transport.data_socket import (
    CLOSE_GRACE_S,
    HELLO_DEADLINE_S,
    IDLE_LOOK_S,
    STALL_DEADLINE_S,
    Outbox,
    SocketThread,
    gathered,
    greet,
    prepare_socket,
    read_once,
    send_all,
    send_now,
)
from transport.errors import LinkClosedError, TransportError
from transport.framing import Allocate
from transport.messages import Goodbye, Hello, LinkSpeed, Message
from transport.speed import SpeedGauge
from transport.types import Address, NodeId
from transport.warm_memory import WarmMemory

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
    """A `contracts.DataSender` over a socket that one thread at a time touches: see `Outbox`."""

    def __init__(self, sock: socket.socket, connection: Connection, node: NodeId, on_closed: Closed) -> None:
        self._socket = sock
        self._connection = connection
        self._node = node
        self._on_closed = on_closed
        self._outbox = Outbox(partial(send_now, sock))
        self._on_sent: OnSent | None = None
        self.bytes_per_s = 0
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
        sock.settimeout(0)
        sender = cls(sock, connection, expected, on_closed)
        sender._thread.start()
        return sender

    @property
    def hello(self) -> Hello:
        return self._connection.hello

    def send(self, epoch: int, number: int, message: Message, tensors: Sequence[TensorBuffer]) -> None:
        """Write a frame or queue it, from any thread; the tensors' memory must not change until it has left.

        Raises LinkClosedError; LinkBusyError over MAX_QUEUED_FRAMES or MAX_QUEUED_BYTES; LocalProtocolError.
        """
        head, payload = self._connection.send(message, epoch, number, tensors)
        began_s = time.monotonic()
        if self._outbox.put(gathered(head, payload), number):
            self._tell_sent(number, began_s)

    def watch(self, on_sent: OnSent) -> None:
        """See `contracts.DataSender`."""
        self._on_sent = on_sent

    def _tell_sent(self, number: int, began_s: float) -> None:
        if self._on_sent is not None:
            self._on_sent(number, began_s, time.monotonic())

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
        try:
            self._bring_out()
        finally:
            self._outbox.close()  # before the socket is: who sends may be writing

    def _bring_out(self) -> None:
        while True:
            try:
                frame = self._outbox.take(IDLE_LOOK_S)
            except queue.Empty:
                self._outbox.while_idle(self._look_back)
                continue
            if frame is None:
                break
            pieces, number = frame
            began_s = time.monotonic()
            send_all(self._socket, pieces)
            self._tell_sent(number, began_s)
            self._look_back()
            self._outbox.sent(pieces)
            del frame, pieces  # not to hold a tensor's memory while idle
        send_all(self._socket, [memoryview(self._connection.send(Goodbye(""))[0])])

    def _look_back(self) -> None:
        """Notice the other side's end, or what it says of the link's speed: all that can come back on this link."""
        with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            while True:
                received = read_once(self._socket, self._connection)
                if received is not None and isinstance(received.message, LinkSpeed):
                    self.bytes_per_s = received.message.bytes_per_s
                elif received is not None:
                    raise LinkClosedError("The other machine closed the data link.")

    def _ended(self, error: TransportError | None) -> None:
        self._outbox.drop()
        self._on_closed(self._node, error)


class TlsDataReceiver:
    """The receiving end of a data connection: one thread reads frames into their final memory, and calls the sink."""

    def __init__(
        self, sock: socket.socket, connection: Connection, node: NodeId, sink: DataSink, gauge: SpeedGauge
    ) -> None:
        self._socket = sock
        self._connection = connection
        self._node = node
        self._sink = sink
        self._gauge = gauge
        self._began_s = 0.0  # when the frame that is being read began to come
        self._thread = SocketThread(f"vtp-receive {node[:8]}", sock, self._work, self._ended)
        self.ended = False

    @classmethod
    def start(
        cls,
        sock: socket.socket,
        own: Hello,
        peer_node: NodeId,
        sink: DataSink,
        allocate: Allocate | None = None,
        deadline_s: float = HELLO_DEADLINE_S,
    ) -> TlsDataReceiver:
        """As `TlsDataSender.start`. `allocate` gives the memory of each payload, on the receiving thread; by default
        large ones use again what nobody holds any more.

        `sink.on_closed` is called exactly once, with None when either side closed on purpose. A TransportError
        raised by `sink.on_frame` ends the link with that error.
        """
        gauge, memory = SpeedGauge(), allocate or WarmMemory()

        def for_payload(size_bytes: int) -> memoryview:
            buffer = memory(size_bytes)
            gauge.begin(size_bytes, time.monotonic())
            return buffer

        connection = Connection(Role.DATA_RECEIVER, own, peer_node, allocate=for_payload)
        greet(sock, connection, deadline_s)
        receiver = cls(sock, connection, peer_node, sink, gauge)
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
        is_first = not self._connection.parser.mid_frame
        received = read_once(self._socket, self._connection)
        now_s = time.monotonic()
        if is_first:
            self._began_s = now_s
        if received is not None and not isinstance(received.message, Goodbye):
            self._gauge.end(now_s)
            self._sink.on_frame(self._node, replace(received, began_s=self._began_s))
            self._tell_speed()

    def _tell_speed(self) -> None:
        bytes_per_s = self._gauge.news()
        if bytes_per_s is not None:
            self._socket.sendall(self._connection.send(LinkSpeed(bytes_per_s))[0])

    def _ended(self, error: TransportError | None) -> None:
        self.ended = True
        self._sink.on_closed(self._node, error)
