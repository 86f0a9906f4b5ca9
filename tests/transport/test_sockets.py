from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import pytest

from transport.errors import LinkClosedError, PortBusyError, RemoteProtocolError, UnreachableError
from transport.sockets import DATA_PREAMBLE, HandshakeThreads, Held, connect, listen
from transport.types import Address


def close_all(listeners: tuple[socket.socket, ...]) -> None:
    for listener in listeners:
        listener.close()


def test_one_free_port_over_ipv4_and_ipv6() -> None:
    listeners = listen(None, 0)
    ports = {listener.getsockname()[1] for listener in listeners}
    families = {listener.family for listener in listeners}
    close_all(listeners)
    assert len(ports) == 1 and ports != {0}
    assert families == {socket.AF_INET, socket.AF_INET6}


def test_a_port_is_free_again_at_once_and_busy_while_held() -> None:
    listeners = listen("127.0.0.1", 0)
    port = listeners[0].getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)), pytest.raises(PortBusyError):
        listen("127.0.0.1", port)
    close_all(listeners)
    close_all(listen("127.0.0.1", port))


def test_a_port_held_over_ipv6_only_is_busy_and_nothing_stays_open() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(PortBusyError):
            listen(None, port)
        close_all(listen("127.0.0.1", port))


@pytest.mark.parametrize("said", [b"\x16\x03\x01\x00", DATA_PREAMBLE + b"\x16"])
def test_what_follows_the_first_bytes_stays_in_the_socket(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        assert Held(ours, 1).first_bytes() == ("tls" if said[0] == 0x16 else "data")
        assert ours.recv(100) == said.removeprefix(DATA_PREAMBLE)


@pytest.mark.parametrize("said", [b"G", b"V\x16", b"VTPDATA\r"])
def test_other_first_bytes_are_refused_without_waiting_for_more(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        began = time.monotonic()
        with pytest.raises(RemoteProtocolError):
            Held(ours, 5).first_bytes()
        assert time.monotonic() - began < 1


def test_hanging_up_wakes_the_thread_that_waits() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        held = Held(ours, 30)
        threading.Timer(0.1, held.hang_up).start()
        began = time.monotonic()
        with pytest.raises(LinkClosedError):
            held.first_bytes()
        assert time.monotonic() - began < 1


async def test_work_that_ends_in_spite_of_a_cancel_is_undone() -> None:
    threads, release, undone = HandshakeThreads(1), threading.Event(), list[str]()
    ours, theirs = socket.socketpair()

    def work() -> str:
        release.wait(5)
        return "made"

    with ours, theirs:
        task = asyncio.create_task(threads.run(Held(ours, 5), work, undone.append))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.sleep(0.05)
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert undone == ["made"]
    threads.close()


async def test_after_close_no_work_begins() -> None:
    threads = HandshakeThreads(1)
    threads.close()
    ours, theirs = socket.socketpair()
    with contextlib.closing(theirs):
        with pytest.raises(LinkClosedError):
            await threads.run(Held(ours, 5), lambda: None, lambda _: None)
        assert ours.fileno() == -1


async def test_an_address_that_never_answers_is_given_up_in_time() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        place = Address(*full.getsockname())
        with contextlib.ExitStack() as waiting:
            for _ in range(3):  # the kernel's queue is full: further SYNs go unanswered
                sock = waiting.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(full.getsockname())
            began = time.monotonic()
            with pytest.raises(UnreachableError, match=r"no answer in 0\.3 s"):
                await connect(place, 0.3)
            assert time.monotonic() - began < 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "fe80::1", ""])
async def test_an_address_that_leads_nowhere_is_unreachable(host: str) -> None:
    with pytest.raises(UnreachableError):
        await connect(Address(host, 1), 1)
