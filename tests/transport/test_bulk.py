"""Bulk links over real sockets and real endpoints."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager

import pytest

from tests.helpers.cluster import TestNode, make_credentials, open_node, until
from tests.helpers.tls_pair import tls_pair
from tests.helpers.wire_samples import ELM, OAK, hello, tensor
from transport import bulk, reception
from transport.bulk import BulkServing, TlsBulkLink
from transport.contracts import Answer
from transport.errors import LinkClosedError, LocalProtocolError, RemoteProtocolError, TransportError, TrustError
from transport.identity import ClusterAuthority
from transport.messages import PIECE_BYTES, AskModel, AskPiece, Message, NotServed, Piece, Ping
from transport.types import NodeId

AUTHORITY = ClusterAuthority.create("home", time.time())
A, B, C = (make_credentials(AUTHORITY, name) for name in "abc")
DIGEST = bytes(32)


class Library:
    """Answers with as many bytes as were asked for; `hold` makes it wait first."""

    def __init__(self) -> None:
        self.asked: list[tuple[NodeId, Message]] = []
        self.hold = threading.Event()
        self.hold.set()

    def serve(self, asker: NodeId, request: Message, answer: Answer) -> None:
        self.asked.append((asker, request))
        self.hold.wait(5)
        if not isinstance(request, AskPiece):
            answer(NotServed("no such model"), ())
        elif request.file == 9:
            raise RemoteProtocolError("There is no file 9.")
        else:
            size = request.size_bytes
            answer(Piece(DIGEST), (tensor("bytes", "uint8", (size,), bytes([request.start % 256]) * size),))


@contextmanager
def linked(library: Library) -> Iterator[TlsBulkLink]:
    mine, theirs = tls_pair()
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(BulkServing.start, theirs, hello(OAK, "oak"), ELM, library)
        link = TlsBulkLink.start(mine, hello(ELM, "elm"), OAK)
        serving = starting.result()
    try:
        yield link
    finally:
        link.hang_up()
        link.close()
        serving.close()
        assert serving.ended and mine.fileno() == theirs.fileno() == -1


def test_pieces_come_back_whole_and_in_the_order_asked() -> None:
    library = Library()
    with linked(library) as link:
        for start in range(20):
            link.ask(AskPiece(1, start, PIECE_BYTES if start % 7 == 0 else 1 + 997 * start))
        for start in range(20):
            received = link.answer()
            size = PIECE_BYTES if start % 7 == 0 else 1 + 997 * start
            assert received.message == Piece(DIGEST)
            assert bytes(received.tensors["bytes"].data) == bytes([start]) * size
    assert library.asked[0] == (ELM, AskPiece(1, 0, PIECE_BYTES))


def test_what_cannot_be_had_is_a_sentence_and_the_link_goes_on() -> None:
    with linked(Library()) as link:
        link.ask(AskModel("00"))
        assert link.answer().message == NotServed("no such model")
        link.ask(AskPiece(1, 0, 4))
        assert isinstance(link.answer().message, Piece)


def test_only_questions_may_be_asked() -> None:
    with linked(Library()) as link:
        with pytest.raises(LocalProtocolError):
            link.ask(Ping(1))


def test_a_request_that_breaks_the_rules_ends_the_link() -> None:
    with linked(Library()) as link:
        link.ask(AskPiece(9, 0, 1))
        with pytest.raises(LinkClosedError):
            link.answer()


def test_hanging_up_wakes_who_waits_for_an_answer() -> None:
    library = Library()
    library.hold.clear()
    with linked(library) as link, ThreadPoolExecutor(1) as pool:
        link.ask(AskModel("00"))
        waiting = pool.submit(link.answer)
        time.sleep(0.05)
        link.hang_up()
        with pytest.raises(LinkClosedError):
            waiting.result(5)
        library.hold.set()


def test_a_caller_that_asks_for_nothing_loses_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "IDLE_LOOK_S", 0.05)
    monkeypatch.setattr(bulk, "IDLE_DEADLINE_S", 0.2)
    with linked(Library()) as link, pytest.raises(LinkClosedError):
        link.answer()


def test_an_answer_that_never_comes_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "ANSWER_DEADLINE_S", 0.2)
    library = Library()
    library.hold.clear()
    with linked(library) as link:
        link.ask(AskModel("00"))
        with pytest.raises(LinkClosedError, match="did not answer"):
            link.answer()
        library.hold.set()


# --- between endpoints ----------------------------------------------------------------------------------------


@asynccontextmanager
async def served(library: Library) -> AsyncIterator[tuple[TestNode, TestNode]]:
    async with open_node(A, bulk=library) as head, open_node(B) as worker:
        yield head, worker


async def test_a_node_of_the_cluster_is_served_under_the_name_of_its_certificate() -> None:
    library = Library()
    async with served(library) as (head, worker):
        link = await worker.endpoint.dial_bulk(head.addresses, head.id)
        link.ask(AskPiece(1, 3, 5))
        received = await asyncio.to_thread(link.answer)
        assert bytes(received.tensors["bytes"].data) == b"\x03" * 5
        assert library.asked == [(worker.id, AskPiece(1, 3, 5))]
        link.close()


async def test_a_node_that_is_no_master_serves_nothing() -> None:
    async with open_node(A) as other, open_node(B) as worker:
        with pytest.raises(TransportError):
            await worker.endpoint.dial_bulk(other.addresses, other.id)


async def test_a_node_of_another_cluster_is_not_served() -> None:
    stranger = make_credentials(ClusterAuthority.create("other", time.time()), "x")
    library = Library()
    async with open_node(A, bulk=library) as head, open_node(stranger) as other:
        with pytest.raises(TrustError):
            await other.endpoint.dial_bulk(head.addresses, head.id)
        assert not library.asked


async def test_a_removed_node_is_cut_and_does_not_come_back() -> None:
    async with served(Library()) as (head, worker):
        link = await worker.endpoint.dial_bulk(head.addresses, head.id)
        head.endpoint.shut_out(frozenset({worker.id}))
        with pytest.raises(LinkClosedError):
            await asyncio.to_thread(link.answer)
        with pytest.raises(TransportError):
            await worker.endpoint.dial_bulk(head.addresses, head.id)
        link.close()


async def test_a_node_that_dials_again_gives_up_its_old_link_and_there_is_room_for_so_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reception, "BULK_LINKS", 1)
    async with served(Library()) as (head, worker), open_node(C) as third:
        old = await worker.endpoint.dial_bulk(head.addresses, head.id)
        new = await worker.endpoint.dial_bulk(head.addresses, head.id)
        with pytest.raises(LinkClosedError):
            await asyncio.to_thread(old.answer)
        crowded = await third.endpoint.dial_bulk(head.addresses, head.id)
        with pytest.raises(LinkClosedError):
            await asyncio.to_thread(crowded.answer)
        new.ask(AskPiece(1, 0, 1))
        assert (await asyncio.to_thread(new.answer)).tensors
        new.close()
        await until(lambda: not [link for link in head.endpoint._reception._receivers if not link.ended])
        room = await third.endpoint.dial_bulk(head.addresses, head.id)
        room.ask(AskPiece(1, 0, 1))
        assert (await asyncio.to_thread(room.answer)).tensors
        for link in (old, crowded, room):
            link.close()


async def test_closing_an_endpoint_ends_its_bulk_links_at_both_ends() -> None:
    async with open_node(A, bulk=Library()) as head:
        async with open_node(B) as worker:
            asking = await worker.endpoint.dial_bulk(head.addresses, head.id)
        with pytest.raises(LinkClosedError):
            await asyncio.to_thread(asking.answer)
        asking.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("vtp-bulk")]
