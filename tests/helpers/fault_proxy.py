"""A TCP proxy on loopback that hurts what passes: what netem does in a kernel that has it, and a little more.

Each direction has its own `Faults`, which may change at any time, also for connections that stand. All chance comes
from one seed. The loop runs on a thread of its own, so that blocking tests can use it.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

READ_BYTES = 16 << 10
RETRANSMIT_S = 0.2
"""What a lost packet costs: Linux's shortest retransmission timeout (RFC 6298 asks for a second)."""
AHEAD = 64
"""Chunks on their way in one direction; then the sender has to wait, as with a full window."""


@dataclass
class Faults:
    """Of one direction, from the sender's side.

    `delay_s`, `jitter_s`: each chunk takes that long, and up to so much more; order is kept, as TCP does.
    `bytes_per_s`: the narrowest place. `loss`: the chance of a chunk to be sent twice, which takes RETRANSMIT_S.
    `slice_bytes`: it arrives in such pieces. `flip`: the chance of a chunk to have one bit turned. `cut_after_bytes`:
    so many more, and the connection is reset. `hole`: everything is taken, nothing arrives. `stalled`: nothing is
    taken any more.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    loss: float = 0.0
    slice_bytes: int | None = None
    flip: float = 0.0
    cut_after_bytes: int | None = None
    hole: bool = False
    stalled: bool = False


@dataclass(eq=False)
class FaultProxy:
    """`there`: from who dials to the target; `back`: the other way. `refusing`: newcomers are reset at once."""

    target_port: int
    seed: int = 0
    target_host: str = "127.0.0.1"
    there: Faults = field(default_factory=Faults)
    back: Faults = field(default_factory=Faults)
    refusing: bool = False
    accepted: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._ready = threading.Event()

    async def serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._ended.wait()
        server.close()
        self._reset_all()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    def cut(self) -> None:
        """Reset every connection that stands, now."""
        self._call(self._reset_all)

    def half_open(self) -> None:
        """The target's ends go without a word to those who dialled, whose ends stand and lead nowhere."""
        self.back.stalled = self.there.hole = True
        self._call(lambda: [_reset(far) for _, far in self._pairs])

    def healed(self) -> None:
        """No faults from now on, also for connections that stand."""
        self.there, self.back, self.refusing = Faults(), Faults(), False

    def _call(self, work) -> None:
        done = threading.Event()
        self._loop.call_soon_threadsafe(lambda: (work(), done.set()))
        assert done.wait(5), "the proxy does not answer"

    def _reset_all(self) -> None:
        for pair in tuple(self._pairs):
            for writer in pair:
                _reset(writer)

    async def _relay(self, reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refusing:
            _reset(near)
            return
        try:
            far_reader, far = await asyncio.open_connection(self.target_host, self.target_port)
        except OSError:
            _reset(near)
            return
        pair = (near, far)
        self._pairs.add(pair)
        try:
            await asyncio.gather(self._carry(reader, far, near, "there"), self._carry(far_reader, near, far, "back"))
        except (OSError, asyncio.CancelledError):  # the streams protocol would log the latter
            pass
        finally:
            self._pairs.discard(pair)
            for writer in pair:
                _reset(writer)

    async def _carry(
        self, reader: asyncio.StreamReader, onward: asyncio.StreamWriter, source: asyncio.StreamWriter, way: str
    ) -> None:
        """One direction: taken in time, delivered when due."""
        on_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(AHEAD)
        delivering = asyncio.create_task(self._deliver(on_way, onward, source, way))
        try:
            while data := await self._take(reader, way):
                await on_way.put((self._due(way), data))
            await on_way.put((self._loop.time() + getattr(self, way).delay_s, b""))
            await delivering
        finally:
            delivering.cancel()

    async def _take(self, reader: asyncio.StreamReader, way: str) -> bytes:
        """An end that comes while nothing is taken is not seen either."""
        await self._flowing(way)
        try:
            return await reader.read(READ_BYTES)
        finally:
            await self._flowing(way)

    async def _flowing(self, way: str) -> None:
        while getattr(self, way).stalled:
            await asyncio.sleep(0.01)

    def _due(self, way: str) -> float:
        faults: Faults = getattr(self, way)
        lost_s = RETRANSMIT_S if self._rng.random() < faults.loss else 0.0
        return self._loop.time() + faults.delay_s + self._rng.uniform(0, faults.jitter_s) + lost_s

    async def _deliver(
        self,
        on_way: asyncio.Queue[tuple[float, bytes]],
        onward: asyncio.StreamWriter,
        source: asyncio.StreamWriter,
        way: str,
    ) -> None:
        while True:
            due_s, data = await on_way.get()
            await asyncio.sleep(max(0.0, due_s - self._loop.time()))
            if not data:
                onward.write_eof() if onward.can_write_eof() else onward.close()
                return
            await self._write(data, onward, source, way)

    async def _write(self, data: bytes, onward: asyncio.StreamWriter, source: asyncio.StreamWriter, way: str) -> None:
        faults: Faults = getattr(self, way)
        if faults.hole:
            return
        data = self._flipped(data) if self._rng.random() < faults.flip else data
        if faults.cut_after_bytes is not None:
            data, faults.cut_after_bytes = data[: faults.cut_after_bytes], faults.cut_after_bytes - len(data)
        for piece in _pieces(data, faults):
            if faults.bytes_per_s is not None:
                await asyncio.sleep(len(piece) / faults.bytes_per_s)
            onward.write(piece)
            await onward.drain()
        if faults.cut_after_bytes is not None and faults.cut_after_bytes <= 0:
            faults.cut_after_bytes = None
            await asyncio.sleep(0.05)  # so that what came before the cut is read
            _reset(onward)
            _reset(source)

    def _flipped(self, data: bytes) -> bytes:
        at, bit = self._rng.randrange(len(data)), self._rng.randrange(8)
        return data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]


def _pieces(data: bytes, faults: Faults) -> Iterator[bytes]:
    size = faults.slice_bytes or max(1, len(data))
    for start in range(0, len(data), size):
        yield data[start : start + size]


def _reset(writer: asyncio.StreamWriter) -> None:
    """With RST, as a router or a dead process's kernel does."""
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@contextmanager
def fault_proxy(target_port: int, *, seed: int = 0, port: int = 0) -> Iterator[FaultProxy]:
    """Listening, until the block ends."""
    proxy = FaultProxy(target_port, seed, port=port)
    thread = threading.Thread(target=lambda: asyncio.run(proxy.serve()), daemon=True, name="fault-proxy")
    thread.start()
    assert proxy._ready.wait(5)
    try:
        yield proxy
    finally:
        proxy._loop.call_soon_threadsafe(proxy._ended.set)
        thread.join(10)
        assert not thread.is_alive()
