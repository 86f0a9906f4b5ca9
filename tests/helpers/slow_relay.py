"""A TCP relay on loopback that lets through only so many bytes a second towards the caller: a slow network."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_READ_BYTES = 16 << 10


@dataclass
class SlowRelay:
    """`bytes_per_s` may change at any time; None: as fast as it goes."""

    target_port: int
    bytes_per_s: float | None
    port: int = 0
    ready: threading.Event = field(default_factory=threading.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop | None = None

    async def serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.ready.set()
        async with server:
            await self.ended.wait()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):  # the streams protocol would log the latter
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
            pumps = (_pump(reader, back_writer, lambda: None), _pump(back_reader, writer, lambda: self.bytes_per_s))
            await asyncio.gather(*pumps)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rate) -> None:
    try:
        while data := await reader.read(_READ_BYTES):
            writer.write(data)
            await writer.drain()
            if (bytes_per_s := rate()) is not None:
                await asyncio.sleep(len(data) / bytes_per_s)
    except OSError:
        pass
    finally:
        writer.close()


@contextmanager
def slow_relay(target_port: int, bytes_per_s: float | None) -> Iterator[SlowRelay]:
    relay = SlowRelay(target_port, bytes_per_s)
    thread = threading.Thread(target=lambda: asyncio.run(relay.serve()), daemon=True)
    thread.start()
    relay.ready.wait(5)
    try:
        yield relay
    finally:
        assert relay.loop is not None
        relay.loop.call_soon_threadsafe(relay.ended.set)
        thread.join(10)
