from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from transport.doorstep import Doorstep

LONG_S = 60.0
WAIT_S = 10.0


class Standing:
    """A doorstep on real sockets, and who was let in."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.heard: asyncio.Queue[socket.socket] = asyncio.Queue()

    def caller(self) -> tuple[socket.socket, socket.socket]:
        """Its own end and the accepted one."""
        theirs = self._stack.enter_context(socket.create_connection(self._listener.getsockname()))
        ours, _ = self._listener.accept()
        ours.setblocking(False)
        return theirs, self._stack.enter_context(ours)

    async def next_heard(self) -> socket.socket:
        async with asyncio.timeout(WAIT_S):
            return await self.heard.get()


@pytest.fixture
async def standing() -> AsyncIterator[Standing]:
    with contextlib.ExitStack() as stack:
        yield Standing(stack)


@contextlib.contextmanager
def doorstep_of(standing: Standing, patience_s: float = LONG_S, places: int = 4) -> Iterator[Doorstep]:
    doorstep = Doorstep(standing.heard.put_nowait, patience_s, places)
    try:
        yield doorstep
    finally:
        doorstep.close()


async def cut(theirs: socket.socket) -> None:
    """Waits until the other side has closed."""
    theirs.settimeout(WAIT_S)
    assert await asyncio.to_thread(theirs.recv, 1) == b""


async def test_who_speaks_comes_in_and_nothing_is_read(standing: Standing) -> None:
    with doorstep_of(standing) as doorstep:
        (_, silent), (theirs, ours) = standing.caller(), standing.caller()
        assert doorstep.take_in(silent) and doorstep.take_in(ours)
        theirs.sendall(b"hello")
        assert await standing.next_heard() is ours
        assert ours.recv(100) == b"hello"
        assert standing.heard.empty() and silent.fileno() != -1


async def test_who_hangs_up_comes_in_too_so_that_nobody_is_forgotten(standing: Standing) -> None:
    with doorstep_of(standing) as doorstep:
        theirs, ours = standing.caller()
        assert doorstep.take_in(ours)
        theirs.close()
        assert await standing.next_heard() is ours


async def test_who_stays_silent_is_closed(standing: Standing) -> None:
    with doorstep_of(standing, patience_s=0.05) as doorstep:
        theirs, ours = standing.caller()
        assert doorstep.take_in(ours)
        await cut(theirs)
        assert standing.heard.empty()


async def test_when_all_places_are_taken_the_oldest_silent_one_goes(standing: Standing) -> None:
    with doorstep_of(standing, places=4) as doorstep:
        callers = [standing.caller() for _ in range(10)]
        for _, ours in callers:
            while not doorstep.take_in(ours):
                await asyncio.sleep(0.01)
        for theirs, _ in callers[:6]:
            await cut(theirs)
        for theirs, _ in callers[6:]:
            theirs.sendall(b"x")
        assert {await standing.next_heard() for _ in range(4)} == {ours for _, ours in callers[6:]}


async def test_one_that_has_just_spoken_is_not_the_one_that_goes(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, first_ours), (_, second_ours) = standing.caller(), standing.caller()
    seat = Doorstep._seat

    def seat_late(doorstep: Doorstep, sock: socket.socket) -> None:
        """The first speaks when the thread has looked already, and is about to make room."""
        if sock is second_ours:
            first.sendall(b"x")
            select.select([first_ours], [], [], WAIT_S)
        seat(doorstep, sock)

    monkeypatch.setattr(Doorstep, "_seat", seat_late)
    with doorstep_of(standing, places=1) as doorstep:
        for ours in (first_ours, second_ours):
            while not doorstep.take_in(ours):
                await asyncio.sleep(0.01)
        assert await standing.next_heard() is first_ours
        assert first_ours.recv(1) == b"x"


async def test_a_thread_that_is_behind_takes_no_more_than_its_places(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, go_on = threading.Event(), threading.Event()

    def slowly(doorstep: Doorstep, sock: socket.socket) -> None:
        busy.set()
        assert go_on.wait(WAIT_S)
        seat(doorstep, sock)

    seat = Doorstep._seat
    monkeypatch.setattr(Doorstep, "_seat", slowly)
    with doorstep_of(standing, places=2) as doorstep:
        callers = [standing.caller() for _ in range(4)]
        assert doorstep.take_in(callers[0][1])
        assert await asyncio.to_thread(busy.wait, WAIT_S)
        assert [doorstep.take_in(ours) for _, ours in callers[1:]] == [True, True, False]
        go_on.set()
        await cut(callers[0][0])


async def test_close_ends_the_thread_and_everyone_on_it(standing: Standing) -> None:
    threads = threading.active_count()
    with doorstep_of(standing) as doorstep:
        callers = [standing.caller() for _ in range(3)]
        for _, ours in callers:
            assert doorstep.take_in(ours)
    assert threading.active_count() == threads
    for theirs, ours in callers:
        assert ours.fileno() == -1
        await cut(theirs)
