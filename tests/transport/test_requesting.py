"""vrm-issue/1 over real sockets and TLS; above all: to whom the secret of a join token is never said."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest

from tests.helpers.cluster import TestNode, make_credentials, open_node
from tests.helpers.one_token_book import OneTokenBook
from transport import identity, pairing, tls
from transport.errors import ClockError, RemovedError, TrustError, UnreachableError
from transport.identity import ClusterAuthority, Credentials
from transport.issuing import Issuer, NoBook, OtherClusterError
from transport.pairing import PairingDesk
from transport.requesting import redeem, renew
from transport.tokens import Token, TokenError
from transport.types import Address

DAY_S = 86400
AUTHORITY = ClusterAuthority.create("home", time.time() - 400 * DAY_S)
OTHER = ClusterAuthority.create("home", time.time())
HEAD = AUTHORITY.enrol_head("tower", identity.make_key(), time.time())
SECRET = b"sixteen bytes..."
TOKEN = Token(hashlib.sha256(identity.to_der(AUTHORITY.certificate_pem)).digest(), SECRET)
KEY = identity.make_key()


@asynccontextmanager
async def master(book: OneTokenBook | None = None, ahead_s: float = 0.0) -> AsyncIterator[TestNode]:
    clock = lambda: time.time() + ahead_s  # noqa: E731
    own = {"desk": PairingDesk(), "authority": AUTHORITY, "book": book or OneTokenBook(SECRET), "clock": clock}
    async with open_node(HEAD, **own) as node:
        yield node


async def join(places: list[Address], token: Token = TOKEN) -> Credentials:
    return await redeem(places, token, name="laptop", key_pem=KEY, deadline_s=3)


def worker(made_s: float) -> Credentials:
    """A node of the cluster, enrolled at that time."""
    key = identity.make_key()
    certificate = identity.to_pem(AUTHORITY.issue(identity.make_request(key), made_s))
    return replace(
        make_credentials(AUTHORITY, "worker"),
        node_id=identity.node_id_of_key(key), key_pem=key, certificate_pem=certificate, head=HEAD.node_id,
    )  # fmt: skip


# --- tokens -------------------------------------------------------------------------------------------------


async def test_a_token_makes_a_node_that_links_at_once() -> None:
    book = OneTokenBook(SECRET)
    async with master(book) as head:
        made = await join(head.addresses)
        assert book.used_by == [made.node_id]
        async with open_node(made) as node:
            link = await node.endpoint.dial_control(head.addresses, made.head)
            assert link.hello.node == HEAD.node_id
        with pytest.raises(TokenError, match="used"):
            await join(head.addresses)


async def test_another_clusters_token_is_refused_here_and_not_shown_there() -> None:
    book = OneTokenBook(SECRET)
    async with master(book) as head:
        foreign = Token(hashlib.sha256(identity.to_der(OTHER.certificate_pem)).digest(), SECRET)
        with pytest.raises(OtherClusterError):
            await join(head.addresses, foreign)
        assert not book.used_by


async def test_a_full_disk_at_the_master_lets_nobody_in() -> None:
    async with master(OneTokenBook(SECRET, fails=True)) as head:
        with pytest.raises(UnreachableError):
            await join(head.addresses)


async def test_a_worker_is_no_master() -> None:
    async with open_node(make_credentials(AUTHORITY, "worker")) as node:
        with pytest.raises(UnreachableError, match="no master"):
            await join(node.addresses)


@dataclass
class Recorder:
    """Plays the master with some certificate and some greeting, and keeps every byte that is said to it."""

    raw: bytearray = field(default_factory=bytearray)
    said: bytearray = field(default_factory=bytearray)
    connections: int = 0
    port: int = 0

    @property
    def places(self) -> list[Address]:
        return [Address("127.0.0.1", self.port)]


@asynccontextmanager
async def recorder(shown: Credentials, greeting: bytes) -> AsyncIterator[Recorder]:
    """TLS ends here: `said` is what a man in the middle reads, `raw` what he sees on the wire."""
    record = Recorder()
    context = tls.make_contexts(shown, accepts_pairing=True).control_server

    async def serve_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        record.connections += 1
        with contextlib.suppress(OSError):
            writer.write(pairing.frame(greeting))
            while data := await reader.read(65536):
                record.said += data
        writer.close()

    inner = await asyncio.start_server(serve_tls, "127.0.0.1", 0, ssl=context)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keep: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if keep:
                    record.raw += data
                writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*inner.sockets[0].getsockname()[:2])
        await asyncio.gather(pump(reader, back, True), pump(there, writer, False))

    outer = await asyncio.start_server(serve, "127.0.0.1", 0)
    record.port = outer.sockets[0].getsockname()[1]
    try:
        yield record
    finally:
        outer.close()
        inner.close()


def greeting_of(own: Credentials, authority: ClusterAuthority = AUTHORITY) -> bytes:
    return Issuer(authority, own.certificate_der, NoBook()).greeting(time.time())


FOREIGN_HEAD = OTHER.enrol_head("tower", identity.make_key(), time.time())
MERE_NODE = make_credentials(AUTHORITY, "worker")
MIDDLE = {
    "another authority": (FOREIGN_HEAD, greeting_of(FOREIGN_HEAD, OTHER), 1),
    "the true authority shown, another certificate": (FOREIGN_HEAD, greeting_of(HEAD), 1),
    "a certificate that names the true master": (FOREIGN_HEAD, greeting_of(FOREIGN_HEAD), 1),
    "a mere node of the cluster": (MERE_NODE, greeting_of(MERE_NODE), 2),
    "a mere node under the master's name": (MERE_NODE, greeting_of(HEAD), 1),
}
"""What he shows, what he says, and how many TLS handshakes the joiner completes with him."""


@pytest.mark.parametrize(("shown", "greeting", "handshakes"), MIDDLE.values(), ids=MIDDLE)
async def test_the_secret_never_leaves_for_anyone_but_the_master(
    shown: Credentials, greeting: bytes, handshakes: int
) -> None:
    async with recorder(shown, greeting) as record:
        with pytest.raises(TrustError):
            await join(record.places)
        assert record.connections == handshakes
        assert record.said == b"", "not a byte inside TLS"
        assert SECRET not in record.raw


async def test_the_recorder_hears_the_secret_when_it_is_the_master() -> None:
    """Else the test above could not fail."""
    async with recorder(HEAD, greeting_of(HEAD)) as record:
        with pytest.raises(UnreachableError):
            await join(record.places)  # it never answers
        assert SECRET in record.said
        assert SECRET not in record.raw


# --- renewal ------------------------------------------------------------------------------------------------


async def test_a_node_whose_certificate_has_ended_gets_another_and_links() -> None:
    own = worker(time.time() - 300 * DAY_S)
    async with master() as head:
        again = await renew(head.addresses, own)
        again.check(time.time())
        async with open_node(again) as node:
            assert (await node.endpoint.dial_control(head.addresses, own.head)).hello.node == HEAD.node_id


async def test_an_ended_certificate_opens_no_link_by_itself() -> None:
    own = worker(time.time() - 300 * DAY_S)
    async with master() as head, open_node(own, may_have_ended=True) as node:
        with pytest.raises(TrustError, match="does not accept"):
            await node.endpoint.dial_control(head.addresses, own.head)
        assert not head.memory.links


async def test_a_removed_node_hears_that_it_was_removed() -> None:
    own = worker(time.time() - 300 * DAY_S)
    async with master(OneTokenBook(SECRET, removed={own.node_id})) as head:
        with pytest.raises(RemovedError):
            await renew(head.addresses, own)


async def test_a_node_renews_with_its_own_master_only() -> None:
    own = replace(worker(time.time() - 300 * DAY_S), head="f" * 32)
    async with master() as head:
        with pytest.raises(TrustError, match="not node ffffffff"):
            await renew(head.addresses, own)


# --- clocks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart_s", [44 * 60, -44 * 60])
async def test_clocks_up_to_45_minutes_apart_let_a_new_machine_in(apart_s: float) -> None:
    """Everything, the authority too, was made this very moment."""
    async with fresh_cluster(apart_s) as (head, token):
        made = await redeem(head.addresses, token, name="x", key_pem=KEY, clock=time.time)
        async with open_node(made) as node:
            assert (await node.endpoint.dial_control(head.addresses, made.head)).hello.node == made.head


@pytest.mark.parametrize("apart_s", [46 * 60, -46 * 60])
async def test_further_apart_is_refused_and_both_clocks_are_named(apart_s: float) -> None:
    async with fresh_cluster(apart_s) as (head, token):
        with pytest.raises(ClockError, match=r"says 20.* UTC, this machine's 20.* UTC"):
            await redeem(head.addresses, token, name="x", key_pem=KEY)


@asynccontextmanager
async def fresh_cluster(ahead_s: float) -> AsyncIterator[tuple[TestNode, Token]]:
    """A master whose clock is `ahead_s` before this machine's."""
    now = time.time() + ahead_s
    authority = ClusterAuthority.create("home", now)
    head = authority.enrol_head("tower", identity.make_key(), now)
    token = Token(hashlib.sha256(identity.to_der(authority.certificate_pem)).digest(), SECRET)
    own = {"desk": PairingDesk(), "authority": authority, "book": OneTokenBook(SECRET)}
    async with open_node(head, **own, clock=lambda: time.time() + ahead_s) as node:
        yield node, token


async def test_a_node_that_is_not_trusted_any_more_learns_that_its_clock_is_why() -> None:
    """The master's certificate seems not to be valid yet to a node whose clock went back."""
    async with fresh_cluster(3 * 3600) as (head, _):
        own = worker(time.time())
        ours = replace(own, ca_pem=head.credentials.ca_pem, head=head.id)
        async with open_node(MERE_NODE) as node:
            node.endpoint._contexts = tls.make_contexts(MERE_NODE, accepts_pairing=False)
            node.endpoint._contexts.control_client.load_verify_locations(cadata=ours.ca_pem.decode())
            with pytest.raises(ClockError, match=r"Perhaps this is why: The clock of the machine at 127\.0\.0\.1"):
                await node.endpoint.dial_control(head.addresses, head.id)


# --- who stalls ---------------------------------------------------------------------------------------------


async def test_a_master_that_says_nothing_is_given_up_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = [Address("127.0.0.1", silent.getsockname()[1])]
        with pytest.raises(UnreachableError):
            await redeem(place, TOKEN, name="x", key_pem=KEY, deadline_s=0.3)


async def test_a_long_frame_is_cut_before_it_is_read() -> None:
    def attack(port: int) -> bytes:
        context = tls.issuing_context()
        with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 3)) as sock:
            sock.recv(4096)
            sock.sendall((16 * 1024 + 1).to_bytes(4, "big"))
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                return sock.recv(4096)
            return b""

    async with master() as head:
        assert await asyncio.to_thread(attack, head.endpoint.port) == b""
        assert await join(head.addresses)
