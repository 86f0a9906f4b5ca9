"""A node's place on the network: its one port, and the links that it dials to others.

`contracts.Network` over TCP and TLS 1.3. Who comes in is `reception`'s; here live opening, dialling and closing.
Never what a message means, and never torch.
"""

from __future__ import annotations

import asyncio
import ssl
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Self

from transport.bulk import TlsBulkLink
from transport.contracts import Book, BulkSource, Closed, ControlHandler, DataSink
from transport.dialling import explained, first_that_answers, open_tls
from transport.errors import LinkClosedError, RemoteProtocolError, TrustError
from transport.framing import Allocate
from transport.identity import ClusterAuthority, Credentials
from transport.issuing import NoBook
from transport.joining import DEADLINE_S, pair
from transport.link import TlsControlLink, TlsDataSender
from transport.messages import Hello
from transport.pairing import PairingDesk
from transport.reception import HANDSHAKES, Admission, House, Reception
from transport.requesting import blaming_clocks
from transport.sockets import CONNECT_S, HandshakeThreads, Held, connect, listen
from transport.tls import ALPN_BULK, ALPN_CONTROL, ALPN_DATA, Contexts, make_contexts
from transport.types import Address, NodeId

_CLOSED: Final = "This node is shutting down."


class Endpoint:
    """A node on the network, from `open` to `close`. Implements `contracts.Network`."""

    def __init__(
        self, port: int, hello: Hello, contexts: Contexts, reception: Reception, threads: HandshakeThreads,
        deadline_s: float, connect_s: float, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self.port = port
        self.listens = reception.listens
        self._hello = hello
        self._contexts = contexts
        self._accepts_pairing = contexts.accepts_pairing
        self._reception = reception
        self._threads = threads
        self._deadline_s = deadline_s
        self._connect_s = connect_s
        self._clock = clock
        self._shut_out: frozenset[NodeId] = frozenset()
        self._dialled: weakref.WeakSet[TlsControlLink] = weakref.WeakSet()
        self._senders: weakref.WeakSet[TlsDataSender] = weakref.WeakSet()
        self._bulk: weakref.WeakSet[TlsBulkLink] = weakref.WeakSet()
        self._closed = False

    @classmethod
    async def open(
        cls,
        credentials: Credentials,
        hello: Hello,
        *,
        host: str | None,
        port: int,
        on_control: ControlHandler,
        sink: DataSink,
        bulk: BulkSource | None = None,
        desk: PairingDesk | None = None,
        authority: ClusterAuthority | None = None,
        book: Book | None = None,
        may_have_ended: bool = False,
        allocate: Allocate | None = None,
        deadline_s: float = DEADLINE_S,
        connect_s: float = CONNECT_S,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Listen on `port` (0: a free one, see `.port`) of `host`, or of every interface when None.

        `bulk`: what nodes that lack weights are served from. With `desk`, `authority` and `book`, machines with a code
        or a token may join; `clock` gives Unix seconds, the same that `desk.invite` is given.

        Raises PortBusyError, TrustError for credentials that do not fit together
        or, unless they `may_have_ended` and will be renewed, have run out.
        """
        credentials.check(None if may_have_ended else clock())
        contexts = make_contexts(credentials, accepts_pairing=desk is not None)
        admission = None
        if desk is not None and authority is not None:
            admission = Admission(desk, authority, credentials.certificate_der, clock, book or NoBook())
        house = House(hello, contexts, on_control, sink, bulk, allocate, admission, deadline_s)
        listeners = listen(host, port)
        threads = HandshakeThreads(2 * HANDSHAKES)  # those of callers, and as many again for dialling
        reception = Reception(listeners, house, threads)
        reception.start()
        bound_port = int(listeners[0].getsockname()[1])
        return cls(bound_port, hello, contexts, reception, threads, deadline_s, connect_s, clock)

    async def dial_control(self, addresses: Sequence[Address], expected: NodeId) -> TlsControlLink:
        """A control link to the node `expected`. Raises UnreachableError, TrustError, IncompatibleError.

        ClockError where it is a master that is not trusted and its clock is far from this one's; LinkClosedError once
        this endpoint is closed.
        """
        self._check_open()

        async def at(address: Address) -> TlsControlLink:
            async with blaming_clocks(address, self._clock, self._deadline_s, self._connect_s):
                with explained(address, expected):
                    async with asyncio.timeout(self._deadline_s):
                        return await self._start_control(address, expected)

        link = await first_that_answers(addresses, at)
        if self._closed:
            await link.close()
            raise LinkClosedError(_CLOSED)
        self._dialled.add(link)
        return link

    async def dial_data(self, addresses: Sequence[Address], expected: NodeId, on_closed: Closed) -> TlsDataSender:
        """The sending end of a data link to the node `expected`. Raises as `dial_control`."""
        self._check_open()
        self._check_not_shut_out(expected)

        async def at(address: Address) -> TlsDataSender:
            with explained(address, expected):
                async with asyncio.timeout(self._deadline_s):
                    return await self._start_data(address, expected, on_closed)

        sender = await first_that_answers(addresses, at)
        if self._closed or expected in self._shut_out:
            sender.hang_up()
            self._check_not_shut_out(expected)
            raise LinkClosedError(_CLOSED)
        self._senders.add(sender)
        return sender

    async def dial_bulk(self, addresses: Sequence[Address], expected: NodeId) -> TlsBulkLink:
        """The asking end of a bulk link to the node `expected`, to be closed by its user. Raises as `dial_control`."""
        self._check_open()
        self._check_not_shut_out(expected)

        async def at(address: Address) -> TlsBulkLink:
            with explained(address, expected):
                async with asyncio.timeout(self._deadline_s):
                    held = Held(await connect(address, self._connect_s), self._deadline_s)
                    return await self._threads.run(held, partial(self._greet_bulk, held, expected), TlsBulkLink.close)

        link = await first_that_answers(addresses, at)
        if self._closed:
            link.close()
            raise LinkClosedError(_CLOSED)
        self._bulk.add(link)
        return link

    def renew(self, credentials: Credentials) -> None:
        """Show the certificate of these, this node's own, from now on. Links that stand go on.

        New contexts, not new certificates in the old ones: other threads may be shaking hands with those.
        """
        self._contexts = make_contexts(credentials, accepts_pairing=self._accepts_pairing)
        self._reception.renew(self._contexts, credentials.certificate_der)

    def shut_out(self, nodes: frozenset[NodeId]) -> None:
        """See `contracts.Network`."""
        self._shut_out = nodes
        self._reception.shut_out(nodes)
        for sender in self._senders:
            if sender.node in nodes:
                sender.hang_up()

    async def close(self) -> None:
        """End every link, in and out, and give the port back: no task, thread or socket is left. Again: no effect."""
        if self._closed:
            return
        self._closed = True
        for bulk in self._bulk:
            bulk.hang_up()
        ends = [self._threads.compute(sender.finish) for sender in self._senders]
        await asyncio.gather(self._reception.close(), *(link.close() for link in self._dialled), *ends)
        self._threads.close()

    async def _start_control(self, address: Address, expected: NodeId) -> TlsControlLink:
        context = self._contexts.control_client
        reader, writer = await open_tls(address, context, expected, self._deadline_s, self._connect_s)
        if writer.get_extra_info("ssl_object").selected_alpn_protocol() != ALPN_CONTROL:
            writer.transport.abort()
            raise RemoteProtocolError("it does not speak the control protocol.")
        return await TlsControlLink.start(reader, writer, self._hello, expected, self._deadline_s)

    async def _start_data(self, address: Address, expected: NodeId, on_closed: Closed) -> TlsDataSender:
        held = Held(await connect(address, self._connect_s), self._deadline_s)
        work = partial(self._greet_data, held, expected, on_closed)
        return await self._threads.run(held, work, TlsDataSender.close)

    def _greet_data(self, held: Held, expected: NodeId, on_closed: Closed) -> TlsDataSender:
        """On a thread. Closes the socket when it raises."""
        tls = _tls_of_thread(held, self._contexts.data_client, expected, ALPN_DATA)
        return TlsDataSender.start(tls, self._hello, expected, on_closed, held.left_s)

    def _greet_bulk(self, held: Held, expected: NodeId) -> TlsBulkLink:
        """On a thread. Closes the socket when it raises."""
        tls = _tls_of_thread(held, self._contexts.bulk_client, expected, ALPN_BULK)
        return TlsBulkLink.start(tls, self._hello, expected, held.left_s)

    def _check_open(self) -> None:
        if self._closed:
            raise LinkClosedError(_CLOSED)

    def _check_not_shut_out(self, node: NodeId) -> None:
        if node in self._shut_out:
            raise TrustError(f"Node {node[:8]} was removed from the cluster, or is quarantined.")


def _tls_of_thread(held: Held, context: ssl.SSLContext, expected: NodeId, protocol: str) -> ssl.SSLSocket:
    """TLS for a link that blocking threads own. Raises OSError, RemoteProtocolError, and then closes the socket."""
    try:
        held.say_data()
        tls = held.start_tls(context, expected)
        if tls.selected_alpn_protocol() != protocol:
            raise RemoteProtocolError(f"it does not speak {protocol}.")
    except BaseException:
        held.close()
        raise
    return tls


__all__ = ["Endpoint", "pair"]
