"""Questions and answers by broadcast, over real sockets of this machine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest

from transport import beacon, discovery
from transport.beacon import ANSWERS_PER_S, DATAGRAM_BYTES, Beacon, Question, Said
from transport.types import Address, Peer

SAID = Said("0.1.0", "0123456789abcdef", "home", "1", "5000", 5001, ("10.0.0.7",))


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def answering(*said: Said) -> AsyncIterator[int]:
    port = free_port()
    beacons = [await Beacon.open(one, port) for one in said]
    yield port
    for one in beacons:
        assert one is not None
        one.close()


async def test_every_master_of_this_machine_answers_who_asks() -> None:
    other = Said("0.1.0", "f" * 16, "home", "0", "5000", 5002, ("10.0.0.8",))
    heard: dict[str, Said] = {}
    async with answering(SAID, other) as port:
        question = await Question.open(lambda said, _: heard.__setitem__(said.prefix, said), port)
        assert question is not None
        async with asyncio.timeout(5):
            while len(heard) < 2:
                await asyncio.sleep(0.01)
        question.close()
    assert heard == {SAID.prefix: SAID, other.prefix: other}


async def asked(port: int, *questions: bytes) -> list[bytes]:
    """What comes back within a moment."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        for question in questions:
            await loop.sock_sendto(sock, question, ("127.0.0.1", port))
        got: list[bytes] = []
        try:
            async with asyncio.timeout(0.3):
                while True:
                    got.append(await loop.sock_recv(sock, 65536))
        except TimeoutError:
            return got


QUESTION = (b"VRM-WHO/1 " + b"0" * 16).ljust(DATAGRAM_BYTES, b"\0")


async def test_an_answer_is_never_longer_than_its_question_and_repeats_its_number() -> None:
    long = Said("0.1.0", "0123456789abcdef", "home " * 99, "1", "5000", 5001, ("fd00:1111:2222:3333:4444:5:6:7",) * 99)
    async with answering(long) as port:
        [answer] = await asked(port, QUESTION)
    assert len(answer) <= len(QUESTION)
    assert answer.startswith(QUESTION[:26])


@pytest.mark.parametrize("question", [QUESTION[:-1], QUESTION + b"\0", b"\0" * DATAGRAM_BYTES, QUESTION[:26], b""])
async def test_other_words_get_no_answer(question: bytes) -> None:
    async with answering(SAID) as port:
        assert await asked(port, question) == []


async def test_a_flood_is_answered_so_often_and_no_more() -> None:
    async with answering(SAID) as port:
        assert len(await asked(port, *[QUESTION] * 200)) <= 2 * ANSWERS_PER_S


async def test_an_answer_that_repeats_another_number_or_is_garbage_is_not_heard() -> None:
    heard: list[Said] = []
    question = await Question.open(lambda said, _: heard.append(said), free_port())
    assert question is not None
    number = question._question
    for data in (
        QUESTION[:26] + b"\x80",
        number,
        number + b"\xff\x00",
        number + b"\x81\xa1a\x01",
        number + b"x" * 2000,
    ):
        question.datagram_received(data, ("10.0.0.9", 1))
    question.close()
    assert heard == []


@pytest.mark.parametrize(
    "changed",
    [
        {"prefix": "x"}, {"pair": "2"}, {"api": "99999"}, {"port": 0}, {"port": 70_000}, {"name": "\x1b"},
        {"version": "0" * 99}, {"version": ""},
    ],
)  # fmt: skip
def test_a_malformed_answer_is_passed_over(changed: dict[str, object]) -> None:

    assert discovery._read_answer(SAID, "10.0.0.7") is not None
    assert discovery._read_answer(msgspec.structs.replace(SAID, **changed), "10.0.0.7") is None


def test_hosts_that_are_none_are_left_out_and_where_it_came_from_is_the_best() -> None:

    said = msgspec.structs.replace(SAID, hosts=("evil.example", "fe80::1", "10.0.0.7"))
    assert discovery._read_answer(said, "10.0.0.9") == Peer(
        "0123456789abcdef", "home", (Address("10.0.0.9", 5001), Address("10.0.0.7", 5001)), True, 5000, "0.1.0"
    )


async def test_without_multicast_a_cluster_is_found_by_broadcast(monkeypatch: pytest.MonkeyPatch) -> None:
    """mDNS that says and hears nothing; the rest is real."""
    monkeypatch.setattr(discovery._Looking, "_on_change", lambda *_, **__: None)
    port = free_port()
    monkeypatch.setattr(beacon, "PORT", port)
    monkeypatch.setattr(Beacon.open.__func__, "__defaults__", (port,))
    monkeypatch.setattr(Question.open.__func__, "__defaults__", (port,))
    said = Peer("0123456789abcdef", "home", discovery.local_addresses(5001), True, 5000, "0.1.0")
    async with await discovery.announce(said):
        found = await discovery.find(1.5)
    assert [peer.cluster_id_prefix for peer in found] == [said.cluster_id_prefix]
    assert set(said.addresses) - {a for a in said.addresses if a.host.startswith("fe80")} <= set(found[0].addresses)
