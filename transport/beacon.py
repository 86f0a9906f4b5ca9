"""Meeting where no multicast passes: who looks asks by UDP broadcast, and a master answers the one who asked.

As with mDNS, all that is heard is a rumour. A question is padded to the longest answer, so that nobody can be made to
hit a third harder than he hits himself; so many answers a second and no more; who asked hears only what repeats the
number that it drew. Never links, certificates or torch here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import psutil

PORT: Final = 5001
"""UDP; the node port's number by default, so that a firewall is opened for one number."""
DATAGRAM_BYTES: Final = 1200
"""Passes every link unfragmented (RFC 8200 asks for 1280 with headers)."""
ANSWERS_PER_S: Final = 20
ASK_EVERY_S: Final = 1.0
_MAGIC: Final = b"VRM-WHO/1 "
_NUMBER_BYTES: Final = 16
_HEAD_BYTES: Final = len(_MAGIC) + _NUMBER_BYTES
_log = logging.getLogger(__name__)


class Said(msgspec.Struct, frozen=True):
    """What a master says of its cluster: as in its mDNS record, whose rules it is held against."""

    version: str
    prefix: str
    name: str
    pair: str
    api: str
    port: int
    hosts: tuple[str, ...]


class Beacon(asyncio.DatagramProtocol):
    """Answers until `close`."""

    def __init__(self, said: Said) -> None:
        self._answer = _fitting(said)
        self._transport: asyncio.DatagramTransport | None = None
        self._second, self._count = 0.0, 0

    @classmethod
    async def open(cls, said: Said, port: int = PORT) -> Beacon | None:
        """None where the port cannot be had: then mDNS has to do."""
        try:
            sock = _socket(port)
        except OSError as error:
            _log.info("no answers to broadcasts: %s", error)
            return None
        _, beacon = await asyncio.get_running_loop().create_datagram_endpoint(lambda: cls(said), sock=sock)
        return beacon

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if len(data) == DATAGRAM_BYTES and data.startswith(_MAGIC) and self._may_answer() and self._transport:
            self._transport.sendto(data[:_HEAD_BYTES] + self._answer, addr)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _may_answer(self) -> bool:
        now = asyncio.get_running_loop().time()
        if now - self._second >= 1.0:
            self._second, self._count = now, 0
        self._count += 1
        return self._count <= ANSWERS_PER_S


class Question(asyncio.DatagramProtocol):
    """Asks again and again until `close`; `heard` gets what was answered, and from where."""

    def __init__(self, heard: Callable[[Said, str], None], port: int) -> None:
        self._heard = heard
        self._port = port
        self._question = _MAGIC + secrets.token_hex(_NUMBER_BYTES // 2).encode()
        self._transport: asyncio.DatagramTransport | None = None
        self._asking: asyncio.TimerHandle | None = None

    @classmethod
    async def open(cls, heard: Callable[[Said, str], None], port: int = PORT) -> Question | None:
        """None where this machine has no such sockets."""
        try:
            sock = _socket(0)
        except OSError:
            return None
        loop = asyncio.get_running_loop()
        _, question = await loop.create_datagram_endpoint(lambda: cls(heard, port), sock=sock)
        return question

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._ask()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if len(data) > DATAGRAM_BYTES or not data.startswith(self._question):
            return
        with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
            self._heard(msgspec.msgpack.decode(data[_HEAD_BYTES:], type=Said), str(addr[0]))

    def error_received(self, exc: Exception) -> None:
        """Nobody listens there, or nothing leads there."""

    def close(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        if self._transport is not None:
            self._transport.close()

    def _ask(self) -> None:
        assert self._transport is not None
        for host in broadcast_hosts():
            self._transport.sendto(self._question.ljust(DATAGRAM_BYTES, b"\0"), (host, self._port))
        self._asking = asyncio.get_running_loop().call_later(ASK_EVERY_S, self._ask)


def broadcast_hosts() -> tuple[str, ...]:
    """Each IPv4 network's broadcast address, loopback's too, and the one of all."""
    found = [address.broadcast for addresses in psutil.net_if_addrs().values() for address in addresses
             if address.family == socket.AF_INET and address.broadcast]  # fmt: skip
    return tuple(dict.fromkeys((*found, "255.255.255.255", "127.255.255.255")))


def _socket(port: int) -> socket.socket:
    """Several masters of one machine all hear what is broadcast. Raises OSError."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind(("", port))
    except OSError:
        sock.close()
        raise
    return sock


def _fitting(said: Said) -> bytes:
    """As many of its hosts, the best first, as a datagram takes."""
    return next(data for data in _shorter(said) if len(data) <= DATAGRAM_BYTES - _HEAD_BYTES)


def _shorter(said: Said) -> Iterator[bytes]:
    for count in range(len(said.hosts), -1, -1):
        yield msgspec.msgpack.encode(msgspec.structs.replace(said, hosts=said.hosts[:count], name=said.name[:200]))
