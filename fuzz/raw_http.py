"""Raw bytes on the API's port, many connections at once, and what may come back."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final

from fuzz.findings import CRASHES, BrokenPromiseError, Finding, Tally, require, told
from fuzz.raw_requests import Raw, make_raw
from fuzz.server import Server

AT_ONCE: Final = 24
TOLD_EVERY: Final = 1000
PATIENCE_S: Final = 0.5
"""How long an answer may take before the client says that nothing follows, which ends what waits for more."""
ANSWER_S: Final = 60.0
"""A stalled body may take 30 s, and the server says so afterwards."""
MOST_BYTES: Final = 8 << 20
_STATUS: Final = re.compile(rb"HTTP/\d\.\d (\d{3}) ")
"""aiohttp answers in whatever version it was asked in."""
_PLAIN: Final = frozenset({417})
"""aiohttp itself refuses an unknown Expect, in plain text."""
_TLS_ALERT: Final = 0x15


async def run(
    server: Server,
    count: int,
    seed: int,
    tally: Tally,
    crashes: Path = CRASHES,
    first: int = 0,
    progress: Callable[[str], None] = print,
) -> None:
    """Some connections stall for half a minute: the others go on meanwhile."""
    numbers = iter(range(first, first + count))

    async def work() -> None:
        for number in numbers:
            raw = make_raw(seed, number, server.model)
            await _one(server, raw, f"requests:{seed}:{number}", tally, crashes)
            if (number - first + 1) % TOLD_EVERY == 0:
                progress(f"  raw requests {number - first + 1:,}, {server.footprint()}")
                server.require_alive()

    await asyncio.gather(*(work() for _ in range(min(AT_ONCE, count))))


async def _one(server: Server, raw: Raw, name: str, tally: Tally, crashes: Path) -> None:
    tally.done += 1
    try:
        async with asyncio.timeout(ANSWER_S):
            reply = await exchange(server.port, raw)
        tally.kinds[f"raw {raw.kind}: {check_reply(reply)}"] += 1
    except (BrokenPromiseError, TimeoutError) as error:
        seed, number = name.split(":")[1:]
        command = f"python -m fuzz requests --only raw --seed {seed} --case {number}   # {raw.kind}"
        what = "no answer and no end within the deadline" if isinstance(error, TimeoutError) else told(error)
        tally.add(Finding(what, name, command, raw.data), crashes)


async def exchange(port: int, raw: Raw) -> bytes:
    """Everything that came back until the server ended the connection; one that is reset has ended too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    reply = bytearray()
    sent = asyncio.Event()

    async def read() -> None:
        while len(reply) < MOST_BYTES and (data := await reader.read(65536)):
            reply.extend(data)

    async def write() -> None:
        size = max(1, -(-len(raw.data) // raw.pieces))
        for at in range(0, len(raw.data), size):
            writer.write(raw.data[at : at + size])
            await writer.drain()
            await asyncio.sleep(raw.pause_s)
        sent.set()

    async def end() -> None:
        await sent.wait()
        if not raw.stalls:
            await asyncio.sleep(PATIENCE_S)
            writer.write_eof()

    ending = asyncio.create_task(_unless_reset(end()))
    try:
        await asyncio.gather(_unless_reset(read()), _unless_reset(write()))
    finally:
        ending.cancel()
        writer.transport.abort()
    return bytes(reply)


async def _unless_reset(work: Coroutine[None, None, None]) -> None:
    try:
        await work
    except (ConnectionError, OSError):
        return


def check_reply(reply: bytes) -> str:
    """What came back, in a word. Raises BrokenPromiseError for a failure of the server or for no HTTP at all."""
    if not reply:
        return "closed"
    if reply[0] == _TLS_ALERT:
        return "TLS alert"
    require(_STATUS.match(reply) is not None, f"the reply is no HTTP: {reply[:80]!r}")
    statuses = [int(status) for status in _STATUS.findall(reply)]
    for status in statuses:
        require(status < 500 or (status == 503 and b"Retry-After" in reply), f"{status}: {reply[:600]!r}")
    if statuses[0] >= 400 and len(statuses) == 1 and statuses[0] not in _PLAIN:
        _check_error(reply)
    return str(statuses[0]) if len(statuses) == 1 else "several"


def _check_error(reply: bytes) -> None:
    """OpenAI's error object, unless the request asked for no body."""
    head, _, body = reply.partition(b"\r\n\r\n")
    if not body:
        return
    require(b"content-type: application/json" in head.lower(), f"an error that is not JSON: {reply[:300]!r}")
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        raise BrokenPromiseError(f"an error of another shape: {reply[:600]!r}") from None
    require(
        set(error) == {"message", "type", "param", "code"} and error["message"],
        f"an error of another shape: {body[:300]!r}",
    )
