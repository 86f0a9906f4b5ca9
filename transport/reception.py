"""Who comes to the node port: control, data and bulk links and joining machines, told apart and let in, or closed.

A caller is handed on only after TLS has proven who it is. Until its first byte it stands on the doorstep; then at
most 8 handshakes run at once, each within a deadline that counts from that byte; when 64 wait for their turn, more
callers stay in the kernel's queue. Never what a message means, and never torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import weakref
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, cast

from transport.bulk import BulkServing
from transport.contracts import Book, BulkSource, ControlHandler, DataSink, Outcome
from transport.data_socket import prepare_socket
from transport.dialling import STREAM_LIMIT_BYTES, TLS_GOODBYE_S
from transport.doorstep import Doorstep
from transport.errors import RemoteProtocolError, TransportError, TrustError
from transport.framing import Allocate
from transport.identity import ClusterAuthority
from transport.issuing import Issuer
from transport.joining import admit
from transport.link import TlsControlLink, TlsDataReceiver
from transport.messages import Hello
from transport.pairing import PairingDesk
from transport.requesting import issue
from transport.sockets import FIRST_BYTES_S, LAST_WORDS_S, HandshakeThreads, Held
from transport.tls import ALPN_BULK, ALPN_CONTROL, ALPN_DATA, ALPN_ISSUE, ALPN_JOIN, Contexts, node_of
from transport.types import Address, NodeId

HANDSHAKES: Final = 8
QUEUE: Final = 64
BULK_LINKS: Final = 32
"""Each takes a thread; a node that finds no place asks again a little later."""
DATA_LINKS: Final = 4
"""Of one node. A plan takes one, or two; those of the one before may still be ending."""
_ACCEPT_PAUSE_S: Final = 0.1
_LEAST_S: Final = 1.0
"""What is left of a handshake's deadline once it has its turn, however long it waited: it suffices across the world."""
_DOORSTEP_PAUSE_S: Final = 0.01
_log = logging.getLogger(__name__)

Incoming = TlsDataReceiver | BulkServing
"""What lives on a thread of its own."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What a master needs to let machines in. `leaf_der` is the certificate that its TLS shows."""

    desk: PairingDesk
    authority: ClusterAuthority
    leaf_der: bytes
    clock: Callable[[], float]
    book: Book


@dataclass(frozen=True, slots=True)
class House:
    """Where callers are taken once they are in, and how long they may take at the door."""

    hello: Hello
    contexts: Contexts
    on_control: ControlHandler
    sink: DataSink
    bulk: BulkSource | None
    allocate: Allocate | None
    admission: Admission | None
    deadline_s: float


class Reception:
    """Accepts on `listeners` from `start` to `close`."""

    def __init__(self, listeners: Sequence[socket.socket], house: House, threads: HandshakeThreads) -> None:
        self._listeners = listeners
        self._house = house
        self._threads = threads
        self._doorstep = Doorstep(self._welcome, min(FIRST_BYTES_S, house.deadline_s))
        self._slots = asyncio.Semaphore(HANDSHAKES)
        self._at_door = 0
        self._has_room = asyncio.Event()
        self._has_room.set()
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._receivers: weakref.WeakSet[Incoming] = weakref.WeakSet()
        self._shut_out: frozenset[NodeId] = frozenset()

    @property
    def listens(self) -> tuple[Address, ...]:
        names = [listener.getsockname() for listener in self._listeners]
        return tuple(Address(name[0], name[1]) for name in names)

    def start(self) -> None:
        for listener in self._listeners:
            self._spawn(self._accept(listener))

    async def close(self) -> None:
        """Stop listening, end every link that came in, and wait for all of it."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._doorstep.close()
        for listener in self._listeners:
            listener.close()
        await asyncio.gather(*(self._threads.compute(receiver.close) for receiver in self._receivers))

    def renew(self, contexts: Contexts, leaf_der: bytes) -> None:
        """Show another certificate to those who come from now on; links that stand, and handshakes begun, go on."""
        admission = self._house.admission
        admission = admission and replace(admission, leaf_der=leaf_der)
        self._house = replace(self._house, contexts=contexts, admission=admission)

    def shut_out(self, nodes: frozenset[NodeId]) -> None:
        """Cut the data and bulk links from these nodes, and take none from them any more."""
        self._shut_out = nodes
        for receiver in self._receivers:
            if receiver.node in nodes:
                receiver.hang_up()

    # --- every caller ---------------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._has_room.wait()
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of file descriptors, or the caller is gone again
                _log.debug("accepting failed: %s", error)
                await asyncio.sleep(_ACCEPT_PAUSE_S)
                continue
            await self._let_stand(sock)

    async def _let_stand(self, sock: socket.socket) -> None:
        try:
            while not self._doorstep.take_in(sock):  # noqa: ASYNC110  # it is behind only for a moment
                await asyncio.sleep(_DOORSTEP_PAUSE_S)
        except BaseException:
            sock.close()
            raise

    def _welcome(self, sock: socket.socket) -> None:
        """A caller has said something. Those who already stand on the doorstep come in even when there is no room."""
        if self._closing:
            sock.close()
            return
        self._at_door += 1
        if self._at_door >= QUEUE:
            self._has_room.clear()
        self._spawn(self._serve(sock))

    async def _serve(self, sock: socket.socket) -> None:
        try:
            try:
                link = await self._in_turn(sock)
            finally:
                self._at_door -= 1
                if self._at_door < QUEUE:
                    self._has_room.set()
            if link is not None:
                await self._hand_over(link)
        except (TransportError, OSError, EOFError) as error:
            _log.debug("a caller was turned away: %s", error)

    async def _in_turn(self, sock: socket.socket) -> TlsControlLink | None:
        """The wait for a turn counts too: those who stall in front of others do not add their deadlines up."""
        deadline_s, clock = self._house.deadline_s, asyncio.get_running_loop().time
        spoke_s = clock()
        try:
            async with asyncio.timeout(deadline_s):
                await self._slots.acquire()
        except BaseException:
            sock.close()
            raise
        try:
            left_s = max(spoke_s + deadline_s - clock(), min(deadline_s, _LEAST_S))
            async with asyncio.timeout(left_s):
                return await self._shake_hands(Held(sock, left_s))
        finally:
            self._slots.release()

    async def _shake_hands(self, held: Held) -> TlsControlLink | None:
        """The control link that has come to be; None for what lives without one. Closes the socket when it raises."""
        house = self._house  # the same to the end: what TLS has shown must be what the pairing binds
        receiver = await self._threads.run(held, partial(self._take_data, held, house), partial(_give_up, held))
        if receiver is None:
            return await self._take_streams(held.sock, house)
        self._make_room(receiver)
        self._receivers.add(receiver)
        if receiver.node in self._shut_out:  # since the handshake looked
            receiver.hang_up()
        return None

    def _make_room(self, newest: Incoming) -> None:
        if isinstance(newest, BulkServing):
            self._make_bulk_room(newest)
        else:
            self._make_data_room(newest)

    def _make_data_room(self, newest: TlsDataReceiver) -> None:
        """The one that comes takes the place of all before it, where they are more than any plan needs."""
        receivers = (link for link in self._receivers if isinstance(link, TlsDataReceiver))
        others = [link for link in receivers if link.node == newest.node and not link.ended]
        if len(others) >= DATA_LINKS:
            for link in others:
                link.hang_up()

    def _make_bulk_room(self, newest: BulkServing) -> None:
        """One bulk link per node, the newest, and BULK_LINKS in all."""
        others = [link for link in self._receivers if isinstance(link, BulkServing) and not link.ended]
        for link in others:
            if link.node == newest.node:
                link.hang_up()
        if sum(link.node != newest.node for link in others) >= BULK_LINKS:
            newest.hang_up()

    # --- data and bulk, on a thread ----------------------------------------------------------------------------------

    def _take_data(self, held: Held, house: House) -> Incoming | None:
        """None, with the socket untouched, when the caller begins with TLS; closes it when it raises."""
        try:
            prepare_socket(held.sock)
            if held.first_bytes() == "tls":
                return None
            tls = held.start_tls(house.contexts.data_server)
            protocol = tls.selected_alpn_protocol()
            if protocol not in (ALPN_DATA, ALPN_BULK):
                raise RemoteProtocolError("A caller announced data and spoke something else.")
            node = node_of(tls)
            if node in self._shut_out:
                if house.admission is not None and house.admission.book.is_removed(node):
                    _note(house.admission.book, Outcome("removed", node), held.sock.getpeername())
                raise TrustError("A caller was removed from the cluster, or is quarantined.")
            if protocol == ALPN_BULK:
                if house.bulk is None:
                    raise RemoteProtocolError("A caller asked for weights, which only a master serves.")
                return BulkServing.start(tls, house.hello, node, house.bulk, held.left_s)
            return _start_data(tls, house, node, held.left_s)
        except BaseException:
            held.close()
            raise

    # --- control and pairing, on the loop -------------------------------------------------------------------

    async def _take_streams(self, sock: socket.socket, house: House) -> TlsControlLink | None:
        reader, writer = await _accept_tls(sock, house.contexts.control_server, house.deadline_s)
        try:
            return await self._by_protocol(reader, writer, house)
        except BaseException:
            writer.transport.abort()
            raise

    async def _by_protocol(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, house: House
    ) -> TlsControlLink | None:
        tls = writer.get_extra_info("ssl_object")
        protocol = tls.selected_alpn_protocol()
        if protocol == ALPN_CONTROL:
            return await TlsControlLink.start(reader, writer, house.hello, node_of(tls), house.deadline_s)
        if protocol == ALPN_JOIN and house.admission is not None:
            await self._admit(reader, writer, house.admission)
            return None
        if protocol == ALPN_ISSUE and house.admission is not None:
            await self._issue(reader, writer, house.admission)
            return None
        raise RemoteProtocolError("A caller spoke no protocol of this program.")

    async def _admit(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, admission: Admission) -> None:
        caller = writer.get_extra_info("peername")  # now: a closed transport does not know it any more
        begun = admission.desk.begin(admission.authority, admission.leaf_der, admission.book)
        with contextlib.closing(begun) as handshake:
            try:
                await admit(reader, writer, handshake, admission.clock, self._threads.compute)
            finally:
                _note(admission.book, handshake.outcome, caller)

    async def _issue(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, admission: Admission) -> None:
        caller = writer.get_extra_info("peername")
        issuer = Issuer(admission.authority, admission.leaf_der, admission.book)
        try:
            await issue(reader, writer, issuer, admission.clock, self._threads.compute)
        finally:
            _note(admission.book, issuer.outcome, caller)

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


def _start_data(tls: ssl.SSLSocket, house: House, node: NodeId, deadline_s: float) -> TlsDataReceiver:
    """Garbage in the place of a Hello is garbage of this node: the sink hears of it as of what comes later."""
    try:
        return TlsDataReceiver.start(tls, house.hello, node, house.sink, house.allocate, deadline_s)
    except RemoteProtocolError as error:
        house.sink.on_closed(node, error)
        raise


def _note(book: Book, outcome: Outcome | None, caller: tuple[Any, ...] | None) -> None:
    """`caller`: the socket's other end, None once that is gone."""
    if outcome is not None:
        book.note(outcome, str(caller[0]) if caller else "")


def _give_up(held: Held, receiver: Incoming | None) -> None:
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
    listening = _Listening(context)
    tls = cast(ssl.SSLContext, listening)
    with sock.dup() as spare:  # asyncio closes the other one as soon as the handshake fails
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, sock, ssl=tls, ssl_handshake_timeout=deadline_s, ssl_shutdown_timeout=TLS_GOODBYE_S
            )
        except ssl.SSLError:
            await _say_alert(spare, listening.last_words)
            raise
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class _Listening:
    """A context for one handshake. asyncio drops the alert that says why it failed; here it can be had."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self.last_words = b""

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, **options: Any) -> ssl.SSLObject:
        tls = self._context.wrap_bio(incoming, outgoing, **options)
        known, shake_hands = weakref.ref(tls), type(tls).do_handshake  # not itself: a cycle would outlive the caller

        def keeping_the_alert() -> None:
            alive = known()
            assert alive is not None
            try:
                shake_hands(alive)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError:
                self.last_words = outgoing.read()
                raise

        tls.do_handshake = keeping_the_alert
        return tls


async def _say_alert(sock: socket.socket, alert: bytes) -> None:
    """Closing with unread bytes would reset the connection, and the caller would never read why it is refused."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):  # TimeoutError too
        async with asyncio.timeout(LAST_WORDS_S):
            await loop.sock_sendall(sock, alert)
            sock.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(sock, 4096):
                pass
