"""Who comes to the node port: control links, data links and joining machines, told apart and let in, or closed.

A caller is handed on only after TLS has proven who it is. At most 8 handshakes run at once, each within its
deadline; more callers wait in the kernel's queue. Never what a message means, and never torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import weakref
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from transport.contracts import ControlHandler, DataSink
from transport.data_socket import prepare_socket
from transport.dialling import STREAM_LIMIT_BYTES, TLS_GOODBYE_S
from transport.errors import RemoteProtocolError, TransportError
from transport.framing import Allocate
from transport.identity import ClusterAuthority
from transport.joining import admit
from transport.link import TlsControlLink, TlsDataReceiver
from transport.messages import Hello
from transport.pairing import PairingDesk
from transport.sockets import HandshakeThreads, Held
from transport.tls import ALPN_CONTROL, ALPN_DATA, ALPN_JOIN, Contexts, node_of

HANDSHAKES: Final = 8
_ACCEPT_PAUSE_S: Final = 0.1
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Admission:
    """What a master needs to let machines in."""

    desk: PairingDesk
    authority: ClusterAuthority
    leaf_der: bytes
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True)
class House:
    """Where callers are taken once they are in, and how long they may take at the door."""

    hello: Hello
    contexts: Contexts
    on_control: ControlHandler
    sink: DataSink
    allocate: Allocate
    admission: Admission | None
    deadline_s: float


class Reception:
    """Accepts on `listeners` from `start` to `close`."""

    def __init__(self, listeners: Sequence[socket.socket], house: House, threads: HandshakeThreads) -> None:
        self._listeners = listeners
        self._house = house
        self._threads = threads
        self._slots = asyncio.Semaphore(HANDSHAKES)
        self._tasks: set[asyncio.Task[None]] = set()
        self._receivers: weakref.WeakSet[TlsDataReceiver] = weakref.WeakSet()

    def start(self) -> None:
        for listener in self._listeners:
            self._spawn(self._accept(listener))

    async def close(self) -> None:
        """Stop listening, end every link that came in, and wait for all of it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()
        await asyncio.gather(*(self._threads.compute(receiver.close) for receiver in self._receivers))

    # --- every caller ---------------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of file descriptors, or the caller is gone again
                _log.debug("accepting failed: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            try:
                await self._slots.acquire()
            except BaseException:
                sock.close()
                raise
            self._spawn(self._serve(sock))

    async def _serve(self, sock: socket.socket) -> None:
        try:
            try:
                link = await self._shake_hands(Held(sock, self._house.deadline_s))
            finally:
                self._slots.release()
            if link is not None:
                await self._hand_over(link)
        except (TransportError, OSError, EOFError) as error:
            _log.debug("a caller was turned away: %s", error)

    async def _shake_hands(self, held: Held) -> TlsControlLink | None:
        """The control link that has come to be; None for what lives without one. Closes the socket when it raises."""
        async with asyncio.timeout(self._house.deadline_s):
            receiver = await self._threads.run(held, partial(self._take_data, held), partial(_give_up, held))
            if receiver is None:
                return await self._take_streams(held.sock)
            self._receivers.add(receiver)
            return None

    # --- data, on a thread ----------------------------------------------------------------------------------

    def _take_data(self, held: Held) -> TlsDataReceiver | None:
        """None, with the socket untouched, when the caller begins with TLS; closes it when it raises."""
        house = self._house
        try:
            prepare_socket(held.sock)
            if held.first_bytes() == "tls":
                return None
            tls = held.start_tls(house.contexts.data_server)
            if tls.selected_alpn_protocol() != ALPN_DATA:
                raise RemoteProtocolError("A caller announced data and spoke something else.")
            return TlsDataReceiver.start(tls, house.hello, node_of(tls), house.sink, house.allocate, held.left_s)
        except BaseException:
            held.close()
            raise

    # --- control and pairing, on the loop -------------------------------------------------------------------

    async def _take_streams(self, sock: socket.socket) -> TlsControlLink | None:
        reader, writer = await _accept_tls(sock, self._house.contexts.control_server, self._house.deadline_s)
        try:
            return await self._by_protocol(reader, writer)
        except BaseException:
            writer.transport.abort()
            raise

    async def _by_protocol(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> TlsControlLink | None:
        house, tls = self._house, writer.get_extra_info("ssl_object")
        protocol = tls.selected_alpn_protocol()
        if protocol == ALPN_CONTROL:
            return await TlsControlLink.start(reader, writer, house.hello, node_of(tls), house.deadline_s)
        if protocol == ALPN_JOIN and house.admission is not None:
            await self._admit(reader, writer, house.admission)
            return None
        raise RemoteProtocolError("A caller spoke no protocol of this program.")

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, admission: Admission) -> None:
        with contextlib.closing(admission.desk.begin(admission.authority, admission.leaf_der)) as handshake:
            await admit(reader, writer, handshake, admission.clock, self._threads.compute)

    async def _hand_over(self, link: TlsControlLink) -> None:
        try:
            await self._house.on_control(link)
        finally:
            await link.close()

    # --- tasks ----------------------------------------------------------------------------------------------

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": "a control handler failed", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)


def _give_up(held: Held, receiver: TlsDataReceiver | None) -> None:
    if receiver is None:
        held.close()
    else:
        receiver.close()


async def _accept_tls(
    sock: socket.socket, context: ssl.SSLContext, deadline_s: float
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Streams over an accepted socket; the server's half of asyncio.open_connection."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    reader = asyncio.StreamReader(STREAM_LIMIT_BYTES, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, sock, ssl=context, ssl_handshake_timeout=deadline_s, ssl_shutdown_timeout=TLS_GOODBYE_S
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
