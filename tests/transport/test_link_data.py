"""Data links over real sockets: plain TCP and TLS 1.3 on loopback, both ends real."""

from __future__ import annotations

import hashlib
import mmap
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.helpers.data_links import WAIT_S, DataLink, RawSender, Sink, SocketPair, activation, hidden
from tests.helpers.tls_pair import tcp_pair, tls_pair
from tests.helpers.wire_samples import ELM, OAK, STEP, hello
from transport import data_socket, link
from transport.codec import encode
from transport.connection import Connection, Role
from transport.contracts import TensorBuffer
from transport.errors import (
    IncompatibleError,
    LinkBusyError,
    LinkClosedError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportError,
    TrustError,
)
from transport.framing import OPTIONAL, FrameHeader, heap_buffer
from transport.link import TlsDataSender
from transport.messages import Activation, Goodbye, Ping
from transport.types import TensorSpec


@pytest.fixture(params=[tcp_pair, tls_pair], ids=["plain", "tls"])
def socket_pair(request: pytest.FixtureRequest) -> SocketPair:
    return request.param


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "IDLE_LOOK_S", 0.1)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    deadline_s = time.monotonic() + WAIT_S
    while any(thread.name.startswith("vtp-") for thread in threading.enumerate()):
        assert time.monotonic() < deadline_s, "a link's thread outlived its test"
        time.sleep(0.01)


@pytest.fixture
def data_link(socket_pair: SocketPair) -> Iterator[DataLink]:
    made = DataLink(socket_pair)
    yield made
    made.close()


# --- what arrives -------------------------------------------------------------------------------------


def test_frames_arrive_whole_and_in_order(data_link: DataLink) -> None:
    for number in range(50):
        data_link.sender.send(0, number, activation(number), [hidden(bytes([number]) * (number * 997))])
    for number in range(50):
        received = data_link.sink.frames.get(timeout=WAIT_S)
        assert (received.epoch, received.number, received.message) == (0, number, activation(number))
        assert bytes(received.tensors["hidden_states"].data) == bytes([number]) * (number * 997)
    assert data_link.sink.threads == {f"vtp-receive {ELM[:8]}"}
    assert data_link.sender.hello.name == "oak"
    assert data_link.receiver.hello.name == "elm"


def test_several_tensors_of_one_frame(data_link: DataLink) -> None:
    scales = TensorBuffer(TensorSpec("scales", "float32", (3, 1), 0), memoryview(bytes(range(12))))
    data_link.sender.send(3, 7, Activation(2, STEP), [scales, hidden(b"abcdef", 2)])
    received = data_link.sink.frames.get(timeout=WAIT_S)
    assert received.message == Activation(2, STEP)
    assert bytes(received.tensors["scales"].data) == bytes(range(12))
    assert received.tensors["hidden_states"].spec == TensorSpec("hidden_states", "int8", (3, 2), 12)


def test_any_thread_may_send(data_link: DataLink) -> None:
    def send(number: int) -> None:
        data_link.sender.send(0, number, activation(number), [hidden(bytes([number]) * 100_000)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(send, range(40)))
    arrived = [data_link.sink.frames.get(timeout=WAIT_S) for _ in range(40)]
    assert sorted(received.number for received in arrived) == list(range(40))
    assert all(set(received.tensors["hidden_states"].data) == {received.number} for received in arrived)


def test_the_payload_lies_where_allocate_said(socket_pair: SocketPair) -> None:
    buffers: list[memoryview] = []

    def allocate(size_bytes: int) -> memoryview:
        buffers.append(heap_buffer(size_bytes))
        return buffers[-1]

    made = DataLink(socket_pair, allocate=allocate)
    made.sender.send(0, 0, activation(), [hidden(b"x" * 1000)])
    data = made.sink.frames.get(timeout=WAIT_S).tensors["hidden_states"].data
    assert data.obj is buffers[0].obj
    made.close()


def test_64_mb_cross_tls_without_a_python_copy() -> None:
    size_bytes = 64_000_000
    outgoing = mmap.mmap(-1, size_bytes)  # mappings: out of tracemalloc's sight, so that it sees everything else
    incoming = mmap.mmap(-1, size_bytes)
    pattern = hashlib.sha256(b"vtp").digest() * 31_250
    for start in range(0, size_bytes, len(pattern)):
        outgoing[start : start + len(pattern)] = pattern
    made = DataLink(tls_pair, allocate=lambda size: memoryview(incoming)[:size])
    tensor = hidden(outgoing, 8000)
    made.sender.send(0, 0, activation(0), [hidden(b"warm", 1)])
    made.sink.frames.get(timeout=WAIT_S)
    tracemalloc.start()
    try:
        made.sender.send(0, 1, activation(1), [tensor])
        received = made.sink.frames.get(timeout=60)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 64 << 10
    data = received.tensors["hidden_states"].data
    assert data.obj is incoming
    assert data == memoryview(outgoing)
    made.close()


# --- how it ends --------------------------------------------------------------------------------------


def test_closing_the_sender_brings_out_what_is_queued_and_tells_both_sides(data_link: DataLink) -> None:
    for number in range(20):
        data_link.sender.send(0, number, activation(number), [hidden(b"x" * 10_000)])
    data_link.sender.finish()
    data_link.sender.finish()
    assert data_link.closed.ended() is None
    assert data_link.sink.ended() is None
    assert data_link.sink.frames.qsize() == 20
    with pytest.raises(LinkClosedError):
        data_link.sender.send(0, 20, activation(20), [])


def test_closing_the_receiver_reaches_an_idle_sender(data_link: DataLink) -> None:
    data_link.receiver.close()
    data_link.receiver.close()
    assert data_link.sink.ended() is None
    assert isinstance(data_link.closed.ended(), LinkClosedError)
    with pytest.raises(LinkClosedError):
        data_link.sender.send(0, 0, activation(), [])


def test_a_connection_that_breaks_is_an_error_on_both_sides(data_link: DataLink) -> None:
    socket.socket.shutdown(data_link.raw_out, socket.SHUT_RDWR)
    assert isinstance(data_link.sink.ended(), LinkClosedError)
    assert isinstance(data_link.closed.ended(), LinkClosedError)


def test_closing_from_the_callbacks_does_not_hang(socket_pair: SocketPair) -> None:
    made = DataLink(socket_pair)
    made.sink.on_closed = lambda *_: made.receiver.close()  # type: ignore[method-assign]
    made.sender._on_closed = lambda *_: made.sender.finish()
    made.close()


def test_a_full_queue_is_said_at_once_and_close_does_not_wait_for_it(socket_pair: SocketPair) -> None:
    made = DataLink(socket_pair)
    release = threading.Event()
    made.sink.on_frame = lambda *_: release.wait(WAIT_S)  # type: ignore[method-assign, assignment]
    large = bytearray(8 << 20)
    with pytest.raises(LinkBusyError):
        for number in range(200):
            made.sender.send(0, number, activation(number), [hidden(large)])
    assert number == pytest.approx(64, abs=4)
    started_s = time.monotonic()
    made.sender.finish()
    assert time.monotonic() - started_s < 2.0
    assert made.closed.ended() is None
    release.set()
    made.receiver.close()


def test_the_queue_is_bounded_in_bytes_too_but_one_frame_always_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_socket, "MAX_QUEUED_BYTES", 1000)
    outbox = data_socket.Outbox(lambda pieces: pieces)
    outbox.put([memoryview(bytes(5000))])
    with pytest.raises(LinkBusyError):
        outbox.put([memoryview(b"x")])
    taken = outbox.take(0.1)
    assert taken is not None
    outbox.sent(taken[0])
    outbox.put([memoryview(b"x")])


def test_a_sender_that_is_killed_is_told_in_words_for_people() -> None:
    """The system closes its socket for it, without TLS's goodbye."""
    made = DataLink(tls_pair)
    socket.socket.shutdown(made.raw_out, socket.SHUT_RDWR)
    assert str(made.sink.ended()) == str(LinkClosedError())
    made.close()


def test_a_sink_that_refuses_a_frame_ends_the_link_with_its_error(data_link: DataLink) -> None:
    def refuse(*_: object) -> None:
        raise RemoteProtocolError("a gap")

    data_link.sink.on_frame = refuse  # type: ignore[method-assign]
    data_link.sender.send(0, 5, activation(5), [])
    error = data_link.sink.ended()
    assert isinstance(error, RemoteProtocolError) and str(error) == "a gap"
    assert isinstance(data_link.closed.ended(), LinkClosedError)


def test_memory_that_cannot_be_had_ends_the_link(socket_pair: SocketPair) -> None:
    def allocate(size_bytes: int) -> memoryview:
        raise MemoryError

    made = DataLink(socket_pair, allocate=allocate)
    made.sender.send(0, 0, activation(), [hidden(b"x")])
    assert "no memory" in str(made.sink.ended())
    made.close()


def test_what_may_not_be_sent_is_refused_where_it_is_sent(data_link: DataLink) -> None:
    with pytest.raises(LocalProtocolError):
        data_link.sender.send(0, 0, Ping(1), [])
    with pytest.raises(LocalProtocolError):
        data_link.sender.send(9, 0, activation(), [])


# --- a peer that misbehaves ---------------------------------------------------------------------------


@pytest.fixture
def raw(socket_pair: SocketPair) -> Iterator[RawSender]:
    made = RawSender(socket_pair)
    yield made
    made.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        bytes(64),
        encode(0, 0, hello())[0],
        encode(0, 0, Ping(1))[0],
        FrameHeader(1, 0, Activation.type_id, 0, 0, 0, 10, 0, 2**63).pack(),
        FrameHeader(1, 0, 4000, 0, 0, 0, 0, 0, 0).pack(),
    ],
    ids=["http", "zeros", "second hello", "ping", "huge", "unknown"],
)
def test_a_receiver_closes_on_what_it_must_not_get(raw: RawSender, data: bytes) -> None:
    raw.sock.sendall(data)
    assert isinstance(raw.sink.ended(), RemoteProtocolError)


def test_a_receiver_passes_over_optional_messages_that_it_does_not_know(raw: RawSender) -> None:
    raw.sock.sendall(FrameHeader(1, 0, 4000, OPTIONAL, 0, 0, 0, 0, 3).pack() + b"abc")
    raw.sock.sendall(encode(0, 0, activation())[0])
    assert raw.sink.frames.get(timeout=WAIT_S).message == activation()


def test_a_frame_that_stands_still_ends_the_link_but_an_idle_link_lives(
    socket_pair: SocketPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "IDLE_LOOK_S", 0.05)
    monkeypatch.setattr(link, "STALL_DEADLINE_S", 0.2)
    raw = RawSender(socket_pair)
    time.sleep(0.4)
    frame = encode(0, 0, activation())[0]
    raw.sock.sendall(frame + frame[:70])
    assert raw.sink.frames.get(timeout=WAIT_S).message == activation()
    assert "stood still" in str(raw.sink.ended())
    raw.close()


def test_a_receiver_that_says_goodbye_ends_the_sender(socket_pair: SocketPair) -> None:
    closed = Sink()
    out, into = socket_pair()
    connection = Connection(Role.DATA_RECEIVER, hello(OAK, "oak"), None)
    into.sendall(connection.greeting())
    sender = TlsDataSender.start(out, hello(ELM, "elm"), OAK, closed.on_closed)
    into.sendall(encode(0, 0, Goodbye("no more"))[0])
    assert "closed the data link" in str(closed.ended())
    sender.finish()
    into.close()


@pytest.mark.parametrize(
    ("greeting", "error"),
    [
        (encode(0, 0, hello(OAK, "oak", kind="data", major=2))[0], IncompatibleError),
        (encode(0, 0, hello(ELM, "oak", kind="data"))[0], TrustError),
        (encode(0, 0, hello(OAK, "oak"))[0], RemoteProtocolError),
        (b"HTTP/1.1 400 Bad Request\r\n", RemoteProtocolError),
        (b"VTP1", LinkClosedError),
        (b"", LinkClosedError),
    ],
    ids=["major", "node", "kind", "http", "half", "silence"],
)
def test_a_greeting_that_fails_closes_the_socket_and_starts_nothing(
    socket_pair: SocketPair, greeting: bytes, error: type[TransportError]
) -> None:
    closed = Sink()
    out, into = socket_pair()
    into.sendall(greeting)
    with pytest.raises(error):
        TlsDataSender.start(out, hello(ELM, "elm"), OAK, closed.on_closed, deadline_s=0.2)
    assert out.fileno() == -1
    assert closed.ends.empty()
    into.close()


def test_a_greeting_in_drips_does_not_outlive_its_deadline(socket_pair: SocketPair) -> None:
    out, into = socket_pair()
    greeting = Connection(Role.DATA_RECEIVER, hello(OAK, "oak"), None).greeting()
    stop = threading.Event()

    def drip() -> None:
        for byte in greeting:
            if stop.wait(0.02):
                return
            into.sendall(bytes([byte]))

    with ThreadPoolExecutor(1) as pool:
        pool.submit(drip)
        with pytest.raises(LinkClosedError, match="did not say Hello"):
            TlsDataSender.start(out, hello(ELM, "elm"), OAK, Sink().on_closed, deadline_s=0.2)
        stop.set()
    into.close()


# --- speed --------------------------------------------------------------------------------------------


def test_the_sender_learns_how_fast_large_payloads_come_in(data_link: DataLink) -> None:
    assert data_link.sender.bytes_per_s == 0
    data = bytes(range(256)) * 4096
    data_link.sender.send(0, 0, activation(0), [hidden(data)])
    data_link.sink.frames.get(timeout=WAIT_S)
    deadline_s = time.monotonic() + WAIT_S
    while not data_link.sender.bytes_per_s:
        assert time.monotonic() < deadline_s, "nothing was told"
        time.sleep(0.01)
    for number in range(1, 4):
        data_link.sender.send(0, number, activation(number), [hidden(data)])
        assert bytes(data_link.sink.frames.get(timeout=WAIT_S).tensors["hidden_states"].data) == data


def test_small_frames_leave_from_the_thread_that_sends_them(data_link: DataLink) -> None:
    """The link's own thread has nothing to do with it."""
    data_link.sender.send(0, 0, activation(0), [hidden(b"x" * 30_000)])
    assert data_link.sender._outbox._frames == 0 and data_link.sender._outbox._queue.empty()
    assert len(data_link.sink.frames.get(timeout=WAIT_S).tensors["hidden_states"].data) == 30_000


def test_what_the_socket_does_not_take_at_once_goes_on_by_the_thread_in_order(socket_pair: SocketPair) -> None:
    made = DataLink(socket_pair)
    release = threading.Event()
    seen: list[int] = []
    made.sink.on_frame = lambda _sender, received: (release.wait(WAIT_S), seen.append(received.number))  # type: ignore[method-assign, assignment]
    contents = bytes(range(251)) * 240  # 60 kB: written at once as long as there is room
    for number in range(60):
        made.sender.send(0, number, activation(number), [hidden(contents)])
    release.set()
    deadline_s = time.monotonic() + WAIT_S
    while len(seen) < 60 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert seen == list(range(60))
    made.close()
