"""TCP before TLS: listening on the node port, connecting, and the first bytes that tell what a caller wants.

Never certificates, messages or torch here.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal, TypeVar

from transport.data_socket import prepare_socket
from transport.errors import LinkClosedError, PortBusyError, RemoteProtocolError, TransportError, UnreachableError
from transport.types import Address

CONNECT_S: Final = 3.0
BACKLOG: Final = 64
DATA_PREAMBLE: Final = b"VTPDATA\n"
"""What the dialler of a data connection says before TLS, so that the acceptor need not hand TLS state from the event
loop to a thread. Trusted for nothing: the ALPN inside TLS must agree."""
FIRST_BYTES_S: Final = 2.0
"""A node says its TLS hello, or this preamble, as soon as it is connected: this is for the network alone."""
_TLS_HANDSHAKE: Final = b"\x16"  # RFC 8446, 5.1: the content type of a ClientHello's record
_HTTP_METHODS: Final = b"GHPDOCT"  # the first letters of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, CONNECT, TRACE
_HTTP_WORDS: Final = (
    b"This is the port where VRAMancer's nodes talk to each other, over TLS.\n"
    b"The page and the API are at another port: 5000, unless it was started with --port.\n"
)
_HTTP_REPLY: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_HTTP_WORDS), _HTTP_WORDS)
)
"""For a person with a browser or curl, who took one port for the other."""
LAST_WORDS_S: Final = 0.3
_PORT_TRIES: Final = 16
_BUSY: Final = (errno.EADDRINUSE, errno.EACCES) if sys.platform == "win32" else (errno.EADDRINUSE,)

SocketAddress = tuple[Any, ...]
_T = TypeVar("_T")


# --- listening ----------------------------------------------------------------------------------------------


def listen(host: str | None, port: int) -> tuple[socket.socket, ...]:
    """Non-blocking listeners on one port of `host`, or of every interface over IPv4 and IPv6 when None.

    Port 0 takes a free one. Raises PortBusyError, or TransportError for a host that is not this machine.
    """
    for last_try in [False] * (_PORT_TRIES - 1) + [True]:
        try:
            return _listen_on_all(_places(host, port))
        except OSError as error:
            if error.errno in _BUSY and port == 0 and not last_try:
                continue  # the free IPv4 port was taken over IPv6
            raise _explain(error, host, port) from error
    raise AssertionError("unreachable")


def _places(host: str | None, port: int) -> list[tuple[socket.AddressFamily, SocketAddress]]:
    if host is None:
        return [(socket.AF_INET, ("0.0.0.0", port)), (socket.AF_INET6, ("::", port))]  # noqa: S104 asked for by None
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _listen_on_all(places: Sequence[tuple[socket.AddressFamily, SocketAddress]]) -> tuple[socket.socket, ...]:
    with contextlib.ExitStack() as opened:
        listeners: list[socket.socket] = []
        for family, (place, port, *rest) in places:
            port = listeners[0].getsockname()[1] if listeners else port
            with _tolerating_no_ipv6(family, bool(listeners)):
                listener = opened.enter_context(contextlib.closing(socket.socket(family, socket.SOCK_STREAM)))
                _bind(listener, (place, port, *rest))
                listeners.append(listener)
        opened.pop_all()
        return tuple(listeners)


def _bind(listener: socket.socket, place: SocketAddress) -> None:
    if sys.platform == "win32":  # there, SO_REUSEADDR would let another program share the port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if listener.family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(place)
    listener.listen(BACKLOG)
    listener.setblocking(False)


@contextlib.contextmanager
def _tolerating_no_ipv6(family: socket.AddressFamily, listening: bool) -> Generator[None]:
    """A system without IPv6 still has its IPv4 listener."""
    try:
        yield
    except OSError as error:
        missing = error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)
        if not (family == socket.AF_INET6 and listening and missing):
            raise


def _explain(error: OSError, host: str | None, port: int) -> TransportError:
    if error.errno in _BUSY:
        return PortBusyError(f"Port {port} is already in use.", hint="Name another with --node-port, or 0 for any.")
    if error.errno == errno.EACCES:
        return TransportError(f"Port {port} may not be opened here.", hint="Name one above 1023 with --node-port.")
    where = host or "this machine"
    return TransportError(f"Cannot listen on {where}, port {port}: {error.strerror}.", hint="Check --host.")


# --- connecting ---------------------------------------------------------------------------------------------


async def connect(address: Address, timeout_s: float = CONNECT_S) -> socket.socket:
    """A connected, non-blocking socket; a name's addresses are tried in order. Raises UnreachableError."""
    reason = "it has no address"
    try:
        async with asyncio.timeout(timeout_s):
            for family, place in await _resolve(address):
                try:
                    return await _connect_to(family, place)
                except OSError as error:
                    reason = os.strerror(error.errno) if error.errno else str(error)
    except TimeoutError:
        reason = f"no answer in {timeout_s:g} s"
    except OSError as error:  # socket.gaierror
        reason = error.strerror or str(error)
    raise UnreachableError(f"{address} does not answer ({reason}).")


async def _resolve(address: Address) -> list[tuple[socket.AddressFamily, SocketAddress]]:
    """Literals at once; names on a thread of the loop's."""
    try:
        flags = socket.AI_NUMERICHOST
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=flags)
    except socket.gaierror:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return [(family, place) for family, _, _, _, place in found]


async def _connect_to(family: socket.AddressFamily, place: SocketAddress) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        prepare_socket(sock)
        await asyncio.get_running_loop().sock_connect(sock, place)
    except BaseException:
        sock.close()
        raise
    return sock


# --- on a thread --------------------------------------------------------------------------------------------


class Held:
    """A socket that a thread works on, blocking, until a deadline; `hang_up` from any thread wakes it."""

    def __init__(self, sock: socket.socket, deadline_s: float) -> None:
        self.sock = sock
        self._until = time.monotonic() + deadline_s
        self._hung_up = False

    @property
    def left_s(self) -> float:
        """Seconds to the deadline. Raises TimeoutError past it, LinkClosedError once hung up."""
        if self._hung_up:
            raise LinkClosedError
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("no handshake in time")
        return left_s

    def hang_up(self) -> None:
        self._hung_up = True
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)  # SSLSocket's own would drop TLS under the thread

    def close(self) -> None:
        self.sock.close()

    def first_bytes(self) -> Literal["tls", "data"]:
        """What the caller wants: a TLS record stays unread, the data preamble is taken off.

        Raises RemoteProtocolError at the first byte that fits neither, OSError; TimeoutError after FIRST_BYTES_S.
        """
        whole, self._until = self._until, min(self._until, time.monotonic() + FIRST_BYTES_S)
        try:
            return self._tell_apart()
        finally:
            self._until = whole

    def _tell_apart(self) -> Literal["tls", "data"]:
        self.sock.settimeout(self.left_s)
        first = self.sock.recv(1, socket.MSG_PEEK)
        if first == _TLS_HANDSHAKE:
            return "tls"
        if first and first in _HTTP_METHODS:
            self.sock.sendall(_HTTP_REPLY)
            self._let_last_words_through()
            raise RemoteProtocolError("The caller speaks plain HTTP.")
        got = b""
        while got != DATA_PREAMBLE:
            self.sock.settimeout(self.left_s)
            more = self.sock.recv(len(DATA_PREAMBLE) - len(got))
            got += more
            if not more or not DATA_PREAMBLE.startswith(got):
                raise RemoteProtocolError("The caller speaks neither TLS nor VTP.")
        return "data"

    def say_data(self) -> None:
        self.sock.settimeout(self.left_s)
        self.sock.sendall(DATA_PREAMBLE)

    def start_tls(self, context: ssl.SSLContext, server_hostname: str | None = None) -> ssl.SSLSocket:
        """TLS over the socket, as server where no name is given. Raises OSError, ssl.SSLError among them."""
        tls = context.wrap_socket(
            self.sock,
            server_side=server_hostname is None,
            server_hostname=server_hostname,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
        self.sock = tls
        tls.settimeout(self.left_s)
        try:
            tls.do_handshake()
        except ssl.SSLError:
            self._let_last_words_through()
            raise
        return tls

    def _let_last_words_through(self) -> None:
        """Closing with unread bytes would reset the connection, and the caller would never read why it is refused."""
        until = time.monotonic() + min(LAST_WORDS_S, self.left_s)
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
            while (left_s := until - time.monotonic()) > 0:
                self.sock.settimeout(left_s)
                if not socket.socket.recv(self.sock, 4096):
                    return


class HandshakeThreads:
    """Blocking handshakes for the event loop, on a bounded number of threads."""

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, "vrm-handshake")
        self._held: set[Held] = set()
        self._closed = False

    async def run(self, held: Held, work: Callable[[], _T], undo: Callable[[_T], None]) -> _T:
        """`work()`, which owns the socket. When this is cancelled, hangs up, and undoes what came of it after all.

        Raises what `work` raises; LinkClosedError after `close`.
        """
        if self._closed:
            held.close()
            raise LinkClosedError("This node is shutting down.")
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        self._held.add(held)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            held.hang_up()
            await asyncio.wait([future])
            if future.exception() is None:
                undo(future.result())
            raise
        finally:
            self._held.discard(held)

    async def compute(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Hang up on everyone and end the threads."""
        self._closed = True
        for held in self._held:
            held.hang_up()
        self._pool.shutdown()
