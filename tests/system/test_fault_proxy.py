"""The proxy that other tests hurt links with does what it says; else they would prove nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.helpers.fault_proxy import FaultProxy, Faults, fault_proxy

MESSAGE = bytes(range(256)) * 40


@contextmanager
def echo() -> Iterator[int]:
    """A port where everything comes back."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(client: socket.socket) -> None:
        with client:
            try:
                while data := client.recv(65536):
                    client.sendall(data)
            except OSError:
                pass

    def accept() -> None:
        try:
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
        except OSError:
            pass

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with echo() as port, fault_proxy(port, seed=3) as proxy:
        yield proxy


def dial(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), 5)


def read(client: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count and (data := client.recv(65536)):
        got += data
    return got


def test_passes_everything_when_told_nothing(proxy: FaultProxy) -> None:
    with dial(proxy) as client:
        client.sendall(MESSAGE)
        assert read(client, len(MESSAGE)) == MESSAGE


@pytest.mark.parametrize("faults", [Faults(delay_s=0.1), Faults(loss=1.0), Faults(bytes_per_s=100_000)])
def test_takes_longer_and_changes_nothing(proxy: FaultProxy, faults: Faults) -> None:
    proxy.there = faults
    with dial(proxy) as client:
        began = time.monotonic()
        client.sendall(MESSAGE)
        assert read(client, len(MESSAGE)) == MESSAGE
        assert time.monotonic() - began > 0.09


def test_slices_keep_the_order(proxy: FaultProxy) -> None:
    proxy.back = Faults(slice_bytes=1, jitter_s=0.01)
    with dial(proxy) as client:
        for number in range(5):
            client.sendall(bytes([number]) * 50)
        assert read(client, 250) == b"".join(bytes([number]) * 50 for number in range(5))


def test_flips_one_bit(proxy: FaultProxy) -> None:
    proxy.there = Faults(flip=1.0)
    with dial(proxy) as client:
        client.sendall(b"a" * 100)
        got = read(client, 100)
    assert sum((one ^ 97).bit_count() for one in got) == 1


def test_cuts_in_the_middle(proxy: FaultProxy) -> None:
    proxy.there = Faults(cut_after_bytes=60)
    with dial(proxy) as client:
        client.sendall(b"a" * 100)
        got = b""
        with pytest.raises(ConnectionResetError):
            while True:
                data = client.recv(100)
                assert data, "closed instead of cut"
                got += data
        assert len(got) <= 60


def test_a_hole_is_silent_and_a_cut_ends_it(proxy: FaultProxy) -> None:
    with dial(proxy) as client:
        client.sendall(b"a")
        assert read(client, 1) == b"a"
        proxy.half_open()
        client.sendall(b"b")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(1)
        proxy.cut()
        client.settimeout(5)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_refuses_while_told_and_heals(proxy: FaultProxy) -> None:
    proxy.refusing = True
    with pytest.raises(ConnectionResetError), dial(proxy) as client:
        client.sendall(b"a")
        client.recv(1)
        raise ConnectionResetError  # an end is one too: the reset may have come before the bytes
    proxy.healed()
    with dial(proxy) as client:
        client.sendall(MESSAGE)
        assert read(client, len(MESSAGE)) == MESSAGE
