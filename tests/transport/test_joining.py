"""vrm-join/1 over real sockets and TLS: the master's node port and a joining machine."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import time
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

from tests.helpers.cluster import TestNode, make_credentials, open_node, until
from tests.helpers.tls_relay import tls_relay
from transport import identity, pairing, tls
from transport.errors import PairingError, TrustError, UnreachableError
from transport.identity import ClusterAuthority, Credentials
from transport.joining import pair
from transport.messages import Ping
from transport.pairing import PairingDesk, WrongClusterError
from transport.types import Address

AUTHORITY = ClusterAuthority.create("home", time.time())
HEAD = AUTHORITY.enrol_head("tower", identity.make_key(), time.time())
KEY = identity.make_key()


@dataclass
class Master:
    node: TestNode
    desk: PairingDesk
    ahead_s: float = 0.0

    def invite(self) -> str:
        return self.desk.invite(time.time(), random.Random(1))

    async def pair(self, code: str, prefix: str | None = None, places: list[Address] | None = None) -> Credentials:
        return await pair(
            places or self.node.addresses, code, name="laptop", key_pem=KEY, expected_prefix=prefix, deadline_s=3
        )


@pytest.fixture
async def master() -> AsyncIterator[Master]:
    desk = PairingDesk()
    found: list[Master] = []
    clock = lambda: time.time() + (found[0].ahead_s if found else 0.0)  # noqa: E731
    async with open_node(HEAD, desk=desk, authority=AUTHORITY, clock=clock) as node:
        found.append(Master(node, desk))
        yield found[0]


def wrong(code: str) -> str:
    return "-".join((*code.split("-")[:3], "zebra" if not code.endswith("zebra") else "zipper"))


async def test_the_right_code_makes_a_node_that_links_at_once(master: Master) -> None:
    credentials = await master.pair(master.invite().upper().replace("-", " "), AUTHORITY.cluster_id[:16])
    credentials.check(time.time())
    assert (credentials.name, credentials.cluster, credentials.head) == ("laptop", "home", HEAD.node_id)
    async with open_node(credentials) as worker:
        link = await worker.endpoint.dial_control(master.node.addresses, credentials.head)
        await link.send(Ping(1))
        assert await link.receive() == Ping(1)
        assert master.node.memory.links[0].hello.node == credentials.node_id


async def test_a_wrong_code_is_refused_and_the_right_one_still_works(master: Master) -> None:
    code = master.invite()
    with pytest.raises(PairingError, match="did not accept") as raised:
        await master.pair(wrong(code))
    assert "vramancer invite" in raised.value.hint
    assert await master.pair(code)


async def test_the_sixth_try_is_refused_even_with_the_right_code(master: Master) -> None:
    code = master.invite()
    for _ in range(5):
        with pytest.raises(PairingError):
            await master.pair(wrong(code))
    with pytest.raises(PairingError):
        await master.pair(code)


async def test_a_used_code_is_refused(master: Master) -> None:
    code = master.invite()
    await master.pair(code)
    with pytest.raises(PairingError):
        await master.pair(code)


async def test_an_expired_code_is_refused(master: Master) -> None:
    code = master.invite()
    master.ahead_s = 601
    with pytest.raises(PairingError):
        await master.pair(code)


async def test_a_misspelt_code_costs_no_try(master: Master) -> None:
    code = master.invite()
    for _ in range(6):
        with pytest.raises(PairingError, match="not a word"):
            await master.pair(code + "x")
    assert await master.pair(code)


async def test_a_relay_that_forwards_every_message_is_refused(master: Master) -> None:
    code = master.invite()
    async with tls_relay(master.node.addresses[0]) as between:
        with pytest.raises(PairingError, match="did not accept"):
            await master.pair(code, AUTHORITY.cluster_id[:16], [between])
    assert master.desk.open_codes(time.time()) == 1
    assert await master.pair(code)


async def test_a_cluster_other_than_the_announced_one_is_passed_over_without_a_try(master: Master) -> None:
    code = master.invite()
    with pytest.raises(WrongClusterError):
        await master.pair(code, "0" * 16)
    assert await master.pair(code, AUTHORITY.cluster_id[:16])


async def test_the_first_of_several_addresses_that_is_the_master_is_used(master: Master) -> None:
    async with open_node(make_credentials(AUTHORITY, "worker")) as worker:
        with socket.create_server(("127.0.0.1", 0)) as free:
            dead = Address("127.0.0.1", free.getsockname()[1])
        assert await master.pair(master.invite(), None, [dead, *worker.addresses, *master.node.addresses])


async def test_a_node_that_is_no_master_says_so() -> None:
    async with open_node(make_credentials(AUTHORITY, "worker")) as worker:
        with pytest.raises(UnreachableError, match="no master"):
            await pair(worker.addresses, "4-otter-maple-drum", name="x", key_pem=KEY)


async def test_a_page_instead_of_a_node_port_gets_a_hint() -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    page = await asyncio.start_server(serve, "127.0.0.1", 0)
    place = [Address("127.0.0.1", page.sockets[0].getsockname()[1])]
    with pytest.raises(UnreachableError) as raised:
        await pair(place, "4-otter-maple-drum", name="x", key_pem=KEY)
    assert "5001" in raised.value.hint
    page.close()


async def test_a_silent_address_is_given_up_at_the_deadline() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = [Address("127.0.0.1", silent.getsockname()[1])]
        began = time.monotonic()
        with pytest.raises(UnreachableError):
            await pair(place, "4-otter-maple-drum", name="x", key_pem=KEY, deadline_s=0.3)
        assert time.monotonic() - began < 3


def joining_socket(master: Master) -> ssl.SSLSocket:
    return tls.joining_context().wrap_socket(socket.create_connection(("127.0.0.1", master.node.endpoint.port), 3))


async def test_an_oversized_pairing_frame_is_cut_and_takes_no_memory(master: Master) -> None:
    def attack() -> int:
        with joining_socket(master) as sock:
            sock.recv(4096)
            tracemalloc.start()
            with contextlib.suppress(OSError):
                sock.sendall((0xFFFF_FFFF).to_bytes(4, "big"))
                for _ in range(64):
                    sock.sendall(bytes(65536))
            with contextlib.suppress(OSError):
                while sock.recv(4096):
                    pass
            return tracemalloc.get_traced_memory()[1]

    try:
        assert await asyncio.to_thread(attack) < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("message", [b"\x00\x00\x00\x03abc", pairing.frame(b"\x80"), b"\x00\x00\x00\x00"])
async def test_garbage_instead_of_a_request_is_cut(master: Master, message: bytes) -> None:
    def attack() -> bytes:
        with joining_socket(master) as sock:
            sock.recv(4096)
            sock.sendall(message)
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                return sock.recv(4096)
            return b""

    assert await asyncio.to_thread(attack) == b""
    assert await master.pair(master.invite())


async def test_a_joiner_that_falls_silent_is_cut_and_its_place_is_free_again() -> None:
    desk = PairingDesk()
    async with open_node(HEAD, desk=desk, authority=AUTHORITY, deadline_s=0.5) as node:
        with contextlib.closing(await asyncio.to_thread(joining_socket, Master(node, desk))):
            await until(lambda: desk._handshakes == 1, 2)
            await until(lambda: desk._handshakes == 0, 2)


async def test_pairing_does_not_open_the_door_for_the_rest(master: Master) -> None:
    """With a desk, a control link still needs a certificate, and one of this cluster."""
    foreign = make_credentials(ClusterAuthority.create("home", time.time()), "foreign")
    async with open_node(foreign) as stranger:
        with pytest.raises(TrustError):
            await stranger.endpoint.dial_control(master.node.addresses, HEAD.node_id)
    assert not master.node.memory.links
