"""`vrm-join/1` over the network: both sides' conversations of `pairing`, on asyncio streams.

The master's side is called by `endpoint`; the joiner's runs before there is anything to open an endpoint with.
Never torch here.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from transport.dialling import explained, first_that_answers, open_tls
from transport.errors import PairingError, UnreachableError
from transport.identity import Credentials
from transport.pairing import JoinerHandshake, MasterHandshake, frame, frame_length
from transport.sockets import CONNECT_S
from transport.tls import ALPN_JOIN, joining_context, leaf_of
from transport.types import Address
from transport.words import parse_code

DEADLINE_S: Final = 10.0

OnThread = Callable[[Callable[[], bytes]], Awaitable[bytes]]
"""Runs some 20 ms of arithmetic without blocking the event loop."""


async def pair(
    addresses: Sequence[Address],
    code: str,
    *,
    name: str,
    key_pem: bytes,
    expected_prefix: str | None = None,
    deadline_s: float = DEADLINE_S,
    connect_s: float = CONNECT_S,
    clock: Callable[[], float] = time.time,
) -> Credentials:
    """Become the node `name` of the cluster whose master answers at one of `addresses` and knows `code`.

    `expected_prefix`: the first 16 hex digits of the cluster's id, where mDNS named it. Raises PairingError (a code
    that was refused is not tried at another address), WrongClusterError, ClockError, UnreachableError,
    IncompatibleError.
    """
    parse_code(code)  # a misspelt one costs no try

    async def at(address: Address) -> Credentials:
        with explained(address):
            async with asyncio.timeout(deadline_s):
                reader, writer = await open_tls(address, joining_context(), "", deadline_s, connect_s)
                try:
                    leaf_der = _leaf_of_master(address, writer)
                    handshake = JoinerHandshake(code, key_pem, leaf_der, expected_prefix)
                    return await _join(reader, writer, handshake, name, clock())
                finally:
                    writer.transport.abort()

    return await first_that_answers(addresses, at)


async def admit(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    handshake: MasterHandshake,
    clock: Callable[[], float],
    on_thread: OnThread,
) -> None:
    """The master's side, to its end; the caller sets the deadline. Raises TransportError, OSError, EOFError."""
    await send_framed(writer, handshake.greeting(clock()))
    handshake.request(await receive_framed(reader), clock())
    await send_framed(writer, await on_thread(handshake.answer))
    answer = handshake.confirm(await receive_framed(reader), clock())
    await send_framed(writer, await on_thread(lambda: handshake.remembered(answer, clock())))
    with contextlib.suppress(OSError):
        writer.close()
        await writer.wait_closed()


async def _join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handshake: JoinerHandshake, name: str, now: float
) -> Credentials:
    """The arithmetic runs on the loop: a machine that is not yet a node has nothing else to do."""
    try:
        await send_framed(writer, handshake.request(await receive_framed(reader), now))
        await send_framed(writer, handshake.confirm(await receive_framed(reader)))
        return handshake.finish(await receive_framed(reader), name)
    except (EOFError, ConnectionError) as error:
        raise PairingError("The master ended the conversation.", hint="Wait a moment, then try again.") from error


def _leaf_of_master(address: Address, writer: asyncio.StreamWriter) -> bytes:
    tls = writer.get_extra_info("ssl_object")
    if tls.selected_alpn_protocol() != ALPN_JOIN:
        raise UnreachableError(
            f"The node at {address} is no master.",
            hint="Name the machine where 'vramancer start --master' runs, with its node port.",
        )
    return leaf_of(tls)


async def receive_framed(reader: asyncio.StreamReader) -> bytes:
    """One message, its length checked before anything is allocated. Raises PairingError, EOFError, OSError."""
    return await reader.readexactly(frame_length(await reader.readexactly(4)))


async def send_framed(writer: asyncio.StreamWriter, message: bytes) -> None:
    writer.write(frame(message))
    await writer.drain()
