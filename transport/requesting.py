"""`vrm-issue/1` over the network: both sides' conversations of `issuing`, on asyncio streams.

The master's side is called by `reception`; the applicant's needs no endpoint. Never torch here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager

from transport.clocks import check_clocks
from transport.dialling import explained, first_that_answers, open_tls
from transport.errors import ClockError, IncompatibleError, TrustError, UnreachableError
from transport.identity import Credentials, to_pem
from transport.issuing import Issuer, Master, RenewalApplicant, TokenApplicant, check_master, read_greeting
from transport.joining import DEADLINE_S, OnThread, receive_framed, send_framed
from transport.sockets import CONNECT_S
from transport.tls import ALPN_ISSUE, issuing_context, leaf_of
from transport.tokens import Token
from transport.types import Address

Clock = Callable[[], float]
"""Unix seconds."""


async def redeem(
    addresses: Sequence[Address],
    token: Token,
    *,
    name: str,
    key_pem: bytes,
    deadline_s: float = DEADLINE_S,
    connect_s: float = CONNECT_S,
    clock: Clock = time.time,
) -> Credentials:
    """Become the node `name` of the cluster that made `token`, whose master answers at one of `addresses`.

    Two connections: the first fetches the authority and compares its digest with the token's, the second verifies
    the master against it; only then the secret is said. Raises TokenError (OtherClusterError among them: it was not
    shown), ClockError, TrustError, UnreachableError, IncompatibleError.
    """

    async def at(address: Address) -> Credentials:
        with explained(address):
            async with asyncio.timeout(deadline_s):
                async with _conversation(address, issuing_context(), "", deadline_s, connect_s) as (_, _, master):
                    check_master(master, token, clock())
                context = issuing_context(to_pem(master.ca_der))
                async with _conversation(address, context, master.head, deadline_s, connect_s) as (reader, writer, _):
                    applicant = TokenApplicant(token, key_pem, master)
                    await send_framed(writer, applicant.request(leaf_of(writer.get_extra_info("ssl_object"))))
                    return applicant.finish(await receive_framed(reader), name)

    return await first_that_answers(addresses, at)


async def renew(
    addresses: Sequence[Address],
    credentials: Credentials,
    *,
    deadline_s: float = DEADLINE_S,
    connect_s: float = CONNECT_S,
    clock: Clock = time.time,
) -> Credentials:
    """A node's credentials with a new certificate, although the old one has ended.

    Raises RemovedError, ClockError, TrustError, UnreachableError, IncompatibleError.
    """

    async def at(address: Address) -> Credentials:
        with explained(address, credentials.head):
            async with asyncio.timeout(deadline_s):
                context, head = issuing_context(credentials.ca_pem), credentials.head
                async with _conversation(address, context, head, deadline_s, connect_s) as (reader, writer, _):
                    applicant = RenewalApplicant(credentials)
                    await send_framed(writer, applicant.request())
                    return applicant.finish(await receive_framed(reader))

    async def blaming(address: Address) -> Credentials:
        async with blaming_clocks(address, clock, deadline_s, connect_s):
            return await at(address)

    return await first_that_answers(addresses, blaming)


@asynccontextmanager
async def blaming_clocks(address: Address, clock: Clock, deadline_s: float, connect_s: float) -> AsyncGenerator[None]:
    """Where trust fails, look at the other machine's clock: a certificate seems early or late by a wrong one.

    What it says of its clock is proven by nothing, so this only words the error. Raises ClockError instead of
    TrustError where the clocks are too far apart.
    """
    try:
        yield
    except TrustError as error:
        if type(error) is TrustError:  # the others know better why
            with contextlib.suppress(UnreachableError, OSError, EOFError, IncompatibleError):
                await _compare_clocks(address, clock, deadline_s, connect_s, error)
        raise


async def _compare_clocks(
    address: Address, clock: Clock, deadline_s: float, connect_s: float, error: TrustError
) -> None:
    async with asyncio.timeout(deadline_s):
        async with _conversation(address, issuing_context(), "", deadline_s, connect_s) as (_, _, master):
            pass
    try:
        check_clocks(master.now, clock(), f"the machine at {address}")
    except ClockError as apart:
        raise ClockError(f"{error} Perhaps this is why: {apart}") from error


async def issue(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, issuer: Issuer, clock: Clock, on_thread: OnThread
) -> None:
    """The master's side, to its end; the caller sets the deadline. Raises TransportError, OSError, EOFError."""
    await send_framed(writer, issuer.greeting(clock()))
    message = await receive_framed(reader)
    await send_framed(writer, await on_thread(lambda: issuer.answer(message, clock())))
    with contextlib.suppress(OSError):
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def _conversation(
    address: Address, context: ssl.SSLContext, server_hostname: str, deadline_s: float, connect_s: float
) -> AsyncGenerator[tuple[asyncio.StreamReader, asyncio.StreamWriter, Master]]:
    reader, writer = await open_tls(address, context, server_hostname, deadline_s, connect_s)
    try:
        if writer.get_extra_info("ssl_object").selected_alpn_protocol() != ALPN_ISSUE:
            raise UnreachableError(
                f"The node at {address} is no master.",
                hint="Name the machine where 'vramancer start --master' runs, with its node port.",
            )
        yield reader, writer, read_greeting(await receive_framed(reader))
    finally:
        writer.transport.abort()
