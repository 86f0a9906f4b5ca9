"""Control links over real sockets: plain TCP and TLS 1.3 on loopback, both ends real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.helpers.tls_pair import NAME, contexts
from tests.helpers.wire_samples import ELM, OAK, hello
from transport import link
from transport.codec import encode
from transport.connection import Connection, Role
from transport.errors import (
    IncompatibleError,
    LinkClosedError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportError,
    TrustError,
)
from transport.framing import OPTIONAL, FrameHeader
from transport.link import TlsControlLink
from transport.messages import Activation, Goodbye, Hello, Message, Ping, Step

ACTIVATION = Activation(1, Step(0, 0, ()))
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def streams(tls: bool) -> AsyncIterator[tuple[Streams, Streams]]:
    """(dialled, accepted)."""
    server_context, client_context = contexts() if tls else (None, None)
    accepted: asyncio.Queue[Streams] = asyncio.Queue()
    server = await asyncio.start_server(lambda *ends: accepted.put_nowait(ends), "127.0.0.1", 0, ssl=server_context)
    port = server.sockets[0].getsockname()[1]
    dialled = await asyncio.open_connection(
        "127.0.0.1", port, ssl=client_context, server_hostname=NAME if tls else None
    )
    other = await accepted.get()
    try:
        yield dialled, other
    finally:
        server.close()
        for _, writer in (dialled, other):
            writer.transport.abort()


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
async def both(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Streams, Streams]]:
    async with streams(request.param) as pair:
        yield pair


@pytest.fixture
async def links(both: tuple[Streams, Streams]) -> AsyncIterator[tuple[TlsControlLink, TlsControlLink]]:
    """elm's end, oak's end."""
    dialled, accepted = both
    yield await asyncio.gather(  # type: ignore[misc]
        TlsControlLink.start(*dialled, hello(ELM, "elm"), OAK), TlsControlLink.start(*accepted, hello(OAK, "oak"), ELM)
    )


Links = tuple[TlsControlLink, TlsControlLink]


async def test_messages_cross_both_ways_in_order(links: Links) -> None:
    elm, oak = links
    assert (elm.hello.name, oak.hello.name) == ("oak", "elm")
    assert elm.address.host == "127.0.0.1"
    for number in range(200):
        await elm.send(Ping(number))
        await oak.send(Ping(-number + 1000))
    assert [await oak.receive() for _ in range(200)] == [Ping(number) for number in range(200)]
    assert [await elm.receive() for _ in range(200)] == [Ping(1000 - number) for number in range(200)]


async def test_a_cancelled_receive_loses_nothing(links: Links) -> None:
    elm, oak = links
    for number in range(20):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await oak.receive()
        await elm.send(Ping(number))
        assert await oak.receive() == Ping(number)


async def test_goodbye_ends_with_its_reason_and_stays_ended(links: Links) -> None:
    elm, oak = links
    await elm.send(Ping(1))
    await elm.close("going to sleep")
    await elm.close()
    assert await oak.receive() == Ping(1)
    for _ in range(2):
        with pytest.raises(LinkClosedError, match="going to sleep"):
            await oak.receive()
    with pytest.raises(LinkClosedError):
        await oak.send(Ping(2))
    with pytest.raises(LinkClosedError):
        await elm.send(Ping(3))


async def test_close_wakes_a_waiting_receive(links: Links) -> None:
    elm, _ = links
    waiting = asyncio.create_task(elm.receive())
    await asyncio.sleep(0.01)
    await elm.close()
    with pytest.raises(LinkClosedError):
        await waiting


async def test_a_broken_connection_is_a_closed_link(links: Links) -> None:
    elm, oak = links
    elm._writer.transport.abort()
    with pytest.raises(LinkClosedError):
        await oak.receive()
    with pytest.raises(LinkClosedError):
        await elm.receive()
    with pytest.raises(LinkClosedError):
        await elm.send(Ping(1))


async def test_a_side_that_reads_nothing_ends_in_a_closed_link(links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "SEND_DEADLINE_S", 0.1)
    elm, _ = links
    with pytest.raises(LinkClosedError, match="takes no more"):
        for _ in range(200):
            await elm.send(Goodbye("x" * 1_000_000))
    with pytest.raises(LinkClosedError):
        await elm.receive()


@pytest.mark.parametrize(
    "data",
    [b"GET / ", encode(0, 0, hello())[0], encode(0, 0, ACTIVATION)[0], bytes(64)],
    ids=["http", "second hello", "activation", "zeros"],
)
async def test_garbage_is_a_protocol_error_and_ends_the_link(links: Links, data: bytes) -> None:
    elm, oak = links
    elm._writer.write(data)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError):
            await oak.receive()
    with pytest.raises(LinkClosedError):
        await elm.receive()


async def test_a_message_that_stands_still_ends_the_link(links: Links, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "STALL_DEADLINE_S", 0.1)
    elm, oak = links
    elm._writer.write(encode(0, 0, Ping(1))[0][:-1])
    with pytest.raises(LinkClosedError, match="fell silent"):
        await oak.receive()


async def test_optional_messages_that_are_not_known_are_passed_over(links: Links) -> None:
    elm, oak = links
    elm._writer.write(FrameHeader(1, 0, 4000, OPTIONAL, 0, 0, 0, 0, 0).pack())
    await elm.send(Ping(1))
    assert await oak.receive() == Ping(1)


async def test_a_control_link_carries_no_activations(links: Links) -> None:
    with pytest.raises(LocalProtocolError):
        await links[0].send(ACTIVATION)


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (hello(OAK, "oak", major=2), IncompatibleError),
        (hello(ELM, "oak"), TrustError),
        (hello(OAK, "oak", kind="data"), RemoteProtocolError),
        (Ping(1), RemoteProtocolError),
        (None, LinkClosedError),
    ],
    ids=["major", "node", "kind", "ping", "silence"],
)
async def test_a_greeting_that_fails_closes_the_streams(
    both: tuple[Streams, Streams], first: Message | None, error: type[TransportError]
) -> None:
    dialled, (reader, writer) = both
    if first is not None:
        writer.write(encode(0, 0, first)[0])
    with pytest.raises(error):
        await TlsControlLink.start(*dialled, hello(ELM, "elm"), OAK, deadline_s=0.2)
    greeting = Connection(Role.CONTROL, hello(OAK, "oak"), None)
    greeting.parser.feed(await reader.read())
    frame = greeting.parser.next_event()
    assert frame is not None
    received = greeting.receive(frame)
    assert received is not None and isinstance(received.message, Hello) and received.message.name == "elm"
    assert reader.at_eof()


async def test_without_a_certificate_any_node_may_come(both: tuple[Streams, Streams]) -> None:
    dialled, accepted = both
    elm, _ = await asyncio.gather(
        TlsControlLink.start(*dialled, hello(ELM, "elm"), None),
        TlsControlLink.start(*accepted, hello(OAK, "oak"), None),
    )
    assert elm.hello.node == OAK
