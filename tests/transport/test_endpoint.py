from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import socket
import ssl
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import psutil
import pytest

from tests.helpers.cluster import TestNode, hello_of, make_credentials, open_node, until
from transport import reception, tls
from transport.connection import Connection, Role
from transport.contracts import TensorBuffer
from transport.errors import (
    IncompatibleError,
    LinkClosedError,
    PortBusyError,
    TransportError,
    TrustError,
    UnreachableError,
)
from transport.framing import FrameHeader
from transport.identity import ClusterAuthority, Credentials
from transport.messages import Activation, Ping, Step
from transport.pairing import PairingDesk
from transport.sockets import DATA_PREAMBLE
from transport.types import Address, TensorSpec

AUTHORITY = ClusterAuthority.create("home", time.time())
FOREIGN = ClusterAuthority.create("home", time.time())
A, B = make_credentials(AUTHORITY, "a"), make_credentials(AUTHORITY, "b")
STRANGER = make_credentials(FOREIGN, "stranger")
SHORT_S = 0.4
LATE_S = SHORT_S + 2.5  # of a busy machine, and far below every other deadline


@pytest.fixture
async def nodes() -> AsyncIterator[tuple[TestNode, TestNode]]:
    async with open_node(A) as a, open_node(B) as b:
        yield a, b


def ignore(*_: Any) -> None:
    pass


def careless(credentials: Credentials | None, alpn: str) -> ssl.SSLContext:
    """A client that checks nothing of the server: what an attacker would use."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    if credentials is not None:
        tls._load_identity((context,), credentials)
    return context


@contextlib.contextmanager
def attacker(node: TestNode, alpn: str, credentials: Credentials | None = None) -> Iterator[ssl.SSLSocket]:
    with socket.create_connection(("127.0.0.1", node.endpoint.port), timeout=5) as sock:
        if alpn == tls.ALPN_DATA:
            sock.sendall(DATA_PREAMBLE)
        with careless(credentials, alpn).wrap_socket(sock) as secured:
            yield secured


def is_cut(sock: socket.socket) -> bool:
    """The other side ends the connection, whatever it says before."""
    try:
        while sock.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


# --- links --------------------------------------------------------------------------------------------------


async def test_a_control_link_carries_messages_both_ways(nodes: tuple[TestNode, TestNode]) -> None:
    a, b = nodes
    link = await a.endpoint.dial_control(b.addresses, b.id)
    assert (link.hello.node, link.hello.name) == (b.id, "b")
    for number in range(3):
        await link.send(Ping(number))
        assert await link.receive() == Ping(number)
    assert b.memory.links[0].hello.node == a.id
    await link.close()


async def test_a_data_link_carries_a_tensor(nodes: tuple[TestNode, TestNode]) -> None:
    a, b = nodes
    data = bytes(range(256)) * 1024
    closed: list[Any] = []
    sender = await a.endpoint.dial_data(b.addresses, b.id, lambda *end: closed.append(end))
    buffer = TensorBuffer(TensorSpec("hidden_states", "uint8", (1024, 256), 0), memoryview(data))
    sender.send(7, 0, Activation(1, Step(7, 0, ())), [buffer])
    await until(lambda: b.memory.frames)
    node, received = b.memory.frames[0]
    assert node == a.id
    assert (received.epoch, received.message) == (7, Activation(1, Step(7, 0, ())))
    assert bytes(received.tensors["hidden_states"].data) == data
    sender.close()
    await until(lambda: b.memory.closed and closed)
    assert b.memory.closed == [(a.id, None)]
    assert closed == [(b.id, None)]


async def test_both_kinds_over_ipv6_and_ipv4_on_one_port() -> None:
    async with open_node(A) as a, open_node(B, host=None) as b:
        for host in ("127.0.0.1", "::1", "localhost"):
            places = [Address(host, b.endpoint.port)]
            await (await a.endpoint.dial_control(places, b.id)).close()
            (await a.endpoint.dial_data(places, b.id, ignore)).close()


async def test_dead_addresses_and_other_nodes_are_passed_over(nodes: tuple[TestNode, TestNode]) -> None:
    a, b = nodes
    link = await a.endpoint.dial_control([Address("127.0.0.1", free_port()), *a.addresses, *b.addresses], b.id)
    assert link.hello.node == b.id


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_nobody_there_names_the_addresses(nodes: tuple[TestNode, TestNode]) -> None:
    a, b = nodes
    dead = [Address("127.0.0.1", free_port()), Address("no-such-host.invalid", 5001)]
    for dial in (a.endpoint.dial_control(dead, b.id), a.endpoint.dial_data(dead, b.id, ignore)):
        with pytest.raises(UnreachableError, match=rf"127\.0\.0\.1:{dead[0].port} .*no-such-host\.invalid:5001"):
            await dial


async def test_no_address_at_all_is_unreachable(nodes: tuple[TestNode, TestNode]) -> None:
    with pytest.raises(UnreachableError):
        await nodes[0].endpoint.dial_control([], B.node_id)


async def test_another_protocol_version_is_named_on_both_kinds() -> None:
    newer = msgspec.structs.replace(hello_of(B), major=9)
    async with open_node(A) as a, open_node(B, newer) as b:
        with pytest.raises(IncompatibleError, match=r"9\.0"):
            await a.endpoint.dial_control(b.addresses, b.id)
        with pytest.raises(IncompatibleError, match=r"9\.0"):
            await a.endpoint.dial_data(b.addresses, b.id, ignore)


# --- who is refused -----------------------------------------------------------------------------------------


async def test_a_node_under_another_name_is_refused_by_the_dialler(nodes: tuple[TestNode, TestNode]) -> None:
    a, b = nodes
    for dial in (a.endpoint.dial_control(b.addresses, "f" * 32), a.endpoint.dial_data(b.addresses, "f" * 32, ignore)):
        with pytest.raises(TrustError, match="not node ffffffff"):
            await dial


async def test_another_cluster_is_refused_by_the_dialler() -> None:
    async with open_node(A) as a, open_node(STRANGER) as stranger:
        with pytest.raises(TrustError):
            await a.endpoint.dial_control(stranger.addresses, stranger.id)
        with pytest.raises(TrustError):
            await a.endpoint.dial_data(stranger.addresses, stranger.id, ignore)


async def test_another_clusters_certificate_is_refused_by_the_acceptor() -> None:
    """Its caller trusts our authority, so that its own half of the handshake passes."""
    contexts = tls.make_contexts(STRANGER, accepts_pairing=False)
    contexts.control_client.load_verify_locations(cadata=AUTHORITY.certificate_pem.decode())
    contexts.data_client.load_verify_locations(cadata=AUTHORITY.certificate_pem.decode())
    async with open_node(STRANGER) as stranger, open_node(B) as b:
        stranger.endpoint._contexts = contexts
        for dial in (
            stranger.endpoint.dial_control(b.addresses, b.id),
            stranger.endpoint.dial_data(b.addresses, b.id, ignore),
        ):
            with pytest.raises(TrustError, match="does not accept"):
                await dial
        assert not b.memory.links and not b.memory.closed


async def test_credentials_that_ran_out_are_named_at_once() -> None:
    with pytest.raises(TrustError, match="ended on"):
        async with open_node(A, clock=lambda: time.time() + 181 * 86400):
            pass


@pytest.mark.parametrize("with_desk", [False, True])
@pytest.mark.parametrize("alpn", [tls.ALPN_CONTROL, tls.ALPN_DATA])
async def test_no_certificate_no_link(alpn: str, with_desk: bool) -> None:
    head = AUTHORITY.enrol_head("head", A.key_pem, time.time())
    settings: dict[str, Any] = {"desk": PairingDesk(), "authority": AUTHORITY} if with_desk else {}
    async with open_node(head, **settings) as node:
        assert await asyncio.to_thread(refused_with_hello, node, alpn, None)
        assert not node.memory.links and not node.memory.closed


@pytest.mark.parametrize("alpn", [tls.ALPN_CONTROL, tls.ALPN_DATA])
async def test_a_certificate_of_one_node_and_the_hello_of_another_is_no_link(alpn: str) -> None:
    async with open_node(B) as b:
        assert await asyncio.to_thread(refused_with_hello, b, alpn, A, STRANGER)
        assert not b.memory.links and not b.memory.closed
        assert not await asyncio.to_thread(refused_with_hello, b, alpn, A, A)  # the same, honestly


def refused_with_hello(node: TestNode, alpn: str, certificate: Credentials | None, says: Credentials = A) -> bool:
    role = Role.CONTROL if alpn == tls.ALPN_CONTROL else Role.DATA_SENDER
    try:
        with attacker(node, alpn, certificate) as sock:
            sock.settimeout(0.5)
            sock.sendall(Connection(role, hello_of(says), None).greeting())
            return is_cut(sock)
    except ssl.SSLError:
        return True


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 9, b"VTPDATX\n", b"VTP", b"\x15\x03"])
async def test_garbage_and_plain_http_are_closed_quickly(nodes: tuple[TestNode, TestNode], said: bytes) -> None:
    def ask() -> float:
        with socket.create_connection(("127.0.0.1", nodes[0].endpoint.port), timeout=2) as sock:
            sock.sendall(said)
            if DATA_PREAMBLE.startswith(said):
                sock.shutdown(socket.SHUT_WR)
            began = time.monotonic()
            assert is_cut(sock)
            return time.monotonic() - began

    assert await asyncio.to_thread(ask) < 1.5


@pytest.mark.parametrize("alpn", ["http/1.1", tls.ALPN_JOIN, tls.ALPN_DATA])
async def test_tls_with_another_protocol_is_closed(nodes: tuple[TestNode, TestNode], alpn: str) -> None:
    """vrm-join/1 at a node that is no master, and data without its preamble, among them."""

    def ask() -> bool:
        with socket.create_connection(("127.0.0.1", nodes[0].endpoint.port), timeout=1) as sock:
            try:
                with careless(B, alpn).wrap_socket(sock) as secured:
                    return is_cut(secured)
            except ssl.SSLError:
                return True

    assert await asyncio.to_thread(ask)
    assert not nodes[0].memory.links


async def test_control_behind_the_data_preamble_is_closed(nodes: tuple[TestNode, TestNode]) -> None:
    def ask() -> bool:
        with socket.create_connection(("127.0.0.1", nodes[0].endpoint.port), timeout=1) as sock:
            sock.sendall(DATA_PREAMBLE)
            with careless(B, tls.ALPN_CONTROL).wrap_socket(sock) as secured:
                return is_cut(secured)

    assert await asyncio.to_thread(ask)


OVERSIZED = [
    (tls.ALPN_CONTROL, FrameHeader(1, 0, Ping.type_id, 0, 0, 0, 0xFFFF_FFFF, 0, 0)),
    (tls.ALPN_DATA, FrameHeader(1, 0, Activation.type_id, 0, 0, 0, 0xFFFF_FFFF, 0, 0)),
    (tls.ALPN_DATA, FrameHeader(1, 0, Activation.type_id, 0, 0, 0, 100, 0, 1 << 40)),
]


@pytest.mark.parametrize(("alpn", "header"), OVERSIZED)
async def test_an_oversized_frame_ends_the_link_and_takes_no_memory(alpn: str, header: FrameHeader) -> None:
    role = Role.CONTROL if alpn == tls.ALPN_CONTROL else Role.DATA_SENDER

    def attack(node: TestNode) -> bool:
        with attacker(node, alpn, A) as sock:
            sock.sendall(Connection(role, hello_of(A), None).greeting())
            sock.recv(65536)
            sock.sendall(header.pack() + bytes(100))
            return is_cut(sock)

    async with open_node(B) as b:
        assert not await asyncio.to_thread(refused_with_hello, b, alpn, A)  # and imports and caches are warm
        tracemalloc.start()
        try:
            assert await asyncio.to_thread(attack, b)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()


# --- deadlines ----------------------------------------------------------------------------------------------


STALLS = {
    "says nothing": b"",
    "half a preamble": DATA_PREAMBLE[:4],
    "preamble, then no TLS": DATA_PREAMBLE,
    "half a TLS record": b"\x16\x03\x01\x02\x00",
}


@pytest.mark.parametrize("said", STALLS.values(), ids=STALLS)
async def test_a_stalled_handshake_is_cut_at_its_deadline(said: bytes) -> None:
    async with open_node(B, deadline_s=SHORT_S) as b:
        assert SHORT_S * 0.9 < await asyncio.to_thread(time_to_cut, b, said) < LATE_S


def time_to_cut(node: TestNode, said: bytes) -> float:
    with socket.create_connection(("127.0.0.1", node.endpoint.port), timeout=5) as sock:
        began = time.monotonic()
        sock.sendall(said)
        assert is_cut(sock)
        return time.monotonic() - began


async def test_a_caller_that_drips_bytes_is_cut_at_the_same_deadline() -> None:
    def drip(node: TestNode) -> float:
        with socket.create_connection(("127.0.0.1", node.endpoint.port), timeout=5) as sock:
            began = time.monotonic()
            with contextlib.suppress(OSError):
                for byte in b"\x16\x03\x01\x02\x00\x01" + bytes(500):
                    sock.sendall(bytes([byte]))
                    time.sleep(0.02)
            return time.monotonic() - began

    async with open_node(B, deadline_s=SHORT_S) as b:
        assert await asyncio.to_thread(drip, b) < LATE_S


@pytest.mark.parametrize("alpn", [tls.ALPN_CONTROL, tls.ALPN_DATA])
async def test_tls_without_hello_is_cut_at_its_deadline(alpn: str) -> None:
    def wait(node: TestNode) -> float:
        began = time.monotonic()
        with attacker(node, alpn, A) as sock:
            assert is_cut(sock)
        return time.monotonic() - began

    async with open_node(B, deadline_s=SHORT_S) as b:
        assert SHORT_S * 0.8 < await asyncio.to_thread(wait, b) < LATE_S
        assert not b.memory.links and not b.memory.closed


@pytest.mark.parametrize("greeting", [None, b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_dialling_something_else_ends_at_the_deadline(greeting: bytes | None) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            if greeting is None:
                await asyncio.sleep(30)
            else:
                writer.write(greeting)
                await writer.drain()

    other = await asyncio.start_server(serve, "127.0.0.1", 0)
    place = [Address("127.0.0.1", other.sockets[0].getsockname()[1])]
    async with open_node(A, deadline_s=SHORT_S) as a:
        for dial in (a.endpoint.dial_control(place, B.node_id), a.endpoint.dial_data(place, B.node_id, ignore)):
            began = time.monotonic()
            with pytest.raises(UnreachableError, match=str(place[0].port)):
                await dial
            assert time.monotonic() - began < LATE_S
    other.close()


async def test_eight_handshakes_at_once_and_the_ninth_waits_its_turn() -> None:
    async with open_node(A) as a, open_node(B, deadline_s=SHORT_S) as b:
        with contextlib.ExitStack() as idle:
            for _ in range(8):
                idle.enter_context(silent_caller(b)).sendall(b"\x16")
            await until(lambda: b.endpoint._reception._slots.locked())
            began = time.monotonic()
            link = await a.endpoint.dial_control(b.addresses, b.id)
            assert SHORT_S * 0.5 < time.monotonic() - began < LATE_S
        await link.close()


async def test_a_crowd_that_says_nothing_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them stay longer than anybody here has patience for: only their silence tells them from a node."""
    monkeypatch.setattr(reception, "FIRST_BYTES_S", 60.0)
    async with open_node(A) as a, open_node(B, deadline_s=60.0) as b:
        with contextlib.ExitStack() as crowd:
            silent = await asyncio.to_thread(lambda: [crowd.enter_context(silent_caller(b)) for _ in range(200)])
            link = await a.endpoint.dial_control(b.addresses, b.id)
            (await a.endpoint.dial_data(b.addresses, b.id, ignore)).close()
            assert await asyncio.to_thread(is_cut, silent[0]), "they make room for each other, the oldest first"
            assert is_open(silent[-1]), "and the newest were there all the time"
        await link.close()


async def test_those_who_stall_do_not_add_their_deadlines_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 that say half a hello, 8 at once: all are gone soon after the deadline of one, not after that of five."""
    monkeypatch.setattr(reception, "_LEAST_S", 0.1)

    def time_to_all_cut(node: TestNode) -> float:
        with contextlib.ExitStack() as crowd:
            began = time.monotonic()
            stalled = [crowd.enter_context(silent_caller(node)) for _ in range(40)]
            for sock in stalled:
                sock.sendall(b"\x16\x03\x01")
            for sock in stalled:
                assert is_cut(sock)
            return time.monotonic() - began

    async with open_node(B, deadline_s=2.0) as b:
        assert await asyncio.to_thread(time_to_all_cut, b) < 5 * 2.0


def silent_caller(node: TestNode) -> socket.socket:
    return socket.create_connection(("127.0.0.1", node.endpoint.port), timeout=20)


def is_open(sock: socket.socket) -> bool:
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        return sock.recv(1) != b""
    return True


# --- ends ---------------------------------------------------------------------------------------------------


def footprint() -> tuple[set[str], int, int]:
    gc.collect()
    threads = {thread.name for thread in threading.enumerate() if thread.name.startswith(("vrm", "vtp"))}
    return threads, len(asyncio.all_tasks()), psutil.Process().num_fds()


async def test_close_leaves_no_thread_task_or_socket() -> None:
    async with open_node(A):
        pass
    before = footprint()
    async with open_node(A, host=None) as a, open_node(B) as b:
        await a.endpoint.dial_control(b.addresses, b.id)
        await a.endpoint.dial_data(b.addresses, b.id, ignore)
        kept = [await b.endpoint.dial_control(a.addresses, a.id), await b.endpoint.dial_data(a.addresses, a.id, ignore)]
        with socket.create_connection(("127.0.0.1", b.endpoint.port)):
            await asyncio.sleep(0.05)  # a handshake is under way
            began = time.monotonic()
            await b.endpoint.close()
            await b.endpoint.close()
            await a.endpoint.close()
            assert time.monotonic() - began < 3
        with pytest.raises(LinkClosedError):
            kept[1].send(0, 0, Activation(1, Step(0, 0, ())), [])
    del kept
    await asyncio.sleep(0.05)
    assert footprint() == before


async def test_a_closed_endpoint_does_not_dial(nodes: tuple[TestNode, TestNode]) -> None:
    a, b = nodes
    await a.endpoint.close()
    with pytest.raises(LinkClosedError):
        await a.endpoint.dial_control(b.addresses, b.id)
    with pytest.raises(LinkClosedError):
        await a.endpoint.dial_data(b.addresses, b.id, ignore)


async def test_a_cancelled_dial_leaves_nothing() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    place = [Address("127.0.0.1", silent.getsockname()[1])]
    async with open_node(A, deadline_s=30) as a:
        await asyncio.sleep(0.05)
        before = footprint()[1:]
        for dial in (a.endpoint.dial_control(place, B.node_id), a.endpoint.dial_data(place, B.node_id, ignore)):
            task = asyncio.ensure_future(dial)
            await asyncio.sleep(0.1)
            task.cancel()
            began = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert time.monotonic() - began < 1
        await asyncio.sleep(0.05)
        assert footprint()[1:] == before
    silent.close()


async def test_closing_ends_a_dial_under_way() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    place = [Address("127.0.0.1", silent.getsockname()[1])]
    async with open_node(A, deadline_s=30) as a:
        task = asyncio.ensure_future(a.endpoint.dial_data(place, B.node_id, ignore))
        await asyncio.sleep(0.1)
        await a.endpoint.close()
        with pytest.raises(TransportError):
            await task
    silent.close()


async def test_the_other_side_notices_a_close(nodes: tuple[TestNode, TestNode]) -> None:
    a, b = nodes
    link = await a.endpoint.dial_control(b.addresses, b.id)
    await a.endpoint.dial_data(b.addresses, b.id, ignore)
    await until(lambda: b.memory.links)
    await b.endpoint.close()
    with pytest.raises(LinkClosedError):
        await asyncio.wait_for(link.receive(), 2)


async def test_a_busy_port_is_named_with_the_flag_that_helps(nodes: tuple[TestNode, TestNode]) -> None:
    port = nodes[0].endpoint.port
    for host in ("127.0.0.1", None):
        with pytest.raises(PortBusyError, match=str(port)) as raised:
            async with open_node(B, host=host, port=port):
                pass
        assert "--node-port" in raised.value.hint


async def test_a_host_that_is_not_here_is_a_named_error() -> None:
    with pytest.raises(TransportError, match="Cannot listen"):
        async with open_node(A, host="203.0.113.77"):
            pass


async def test_a_failing_handler_ends_its_link_alone_and_is_reported() -> None:
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    async with open_node(A) as a, open_node(B) as b:

        async def fail(link: Any) -> None:
            raise ZeroDivisionError

        b.endpoint._reception._house = dataclasses.replace(b.endpoint._reception._house, on_control=fail)
        link = await a.endpoint.dial_control(b.addresses, b.id)
        with pytest.raises(LinkClosedError):
            await link.receive()
        await until(lambda: reported)
        assert isinstance(reported[0]["exception"], ZeroDivisionError)
        (await a.endpoint.dial_data(b.addresses, b.id, ignore)).close()
