from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.helpers.scripted_server import ScriptedDeployment, serving
from vramancer_cli.serving.settings import ServerSettings

QUICK = ServerSettings(head_read_s=0.3, body_read_s=0.3, keepalive_s=30, close_s=0.2)
GET = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def until_cut(reader: asyncio.StreamReader) -> tuple[bytes, float]:
    """What came before the server hung up, and how long that took."""
    started = time.monotonic()
    try:
        got = await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        got = b""
    return got, time.monotonic() - started


async def test_a_half_sent_head_is_cut_however_slowly_it_goes_on() -> None:
    async with serving(settings=QUICK) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /live HTTP/1.1\r\nHost: local")

        async def trickle() -> None:
            for _ in range(40):
                await asyncio.sleep(0.05)
                writer.write(b"x")

        slow = asyncio.create_task(trickle())
        got, took_s = await until_cut(reader)
        slow.cancel()
        assert got == b"" and 0.2 < took_s < 2
        writer.close()


async def test_a_silent_connection_is_cut() -> None:
    async with serving(settings=QUICK) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        got, took_s = await until_cut(reader)
        assert got == b"" and took_s < 2
        writer.close()


async def test_a_second_head_on_a_kept_connection_has_the_same_deadline() -> None:
    async with serving(settings=QUICK) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET)
        await reader.readuntil(b'{"status":"ok"}')
        await asyncio.sleep(0.5)  # idle between requests is the keep-alive's affair
        writer.write(GET)
        await reader.readuntil(b'{"status":"ok"}')
        writer.write(b"GET /live HT")
        got, took_s = await until_cut(reader)
        assert got == b"" and 0.2 < took_s < 2
        writer.close()


async def test_an_idle_connection_is_closed_after_the_keepalive() -> None:
    settings = ServerSettings(keepalive_s=0.6, close_s=0.2)
    async with serving(settings=settings) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET)
        await reader.readuntil(b'{"status":"ok"}')
        _, took_s = await until_cut(reader)
        assert 0.4 < took_s < 3
        writer.close()


async def test_a_slow_body_gets_408(folder: Path) -> None:
    async with serving(ScriptedDeployment(folder), settings=QUICK) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 3)
        assert head.startswith(b"HTTP/1.1 408")
        writer.close()


async def test_a_body_that_is_not_what_its_headers_say_is_the_senders_fault(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = (b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\nxxxx", b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n")
    async with serving(ScriptedDeployment(folder), settings=QUICK) as server:
        for rest in broken:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n" + rest)
            got, _ = await until_cut(reader)
            assert got.split(b" ")[1] == b"400" and b'"code":"invalid_http"' in got
            writer.close()
    assert not caplog.records


async def test_a_long_answer_is_not_cut_by_the_heads_deadline(folder: Path) -> None:
    async with serving(ScriptedDeployment(folder, first_pause_s=1.0), settings=QUICK) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = json.dumps({"model": "scripted", "prompt": "hi"}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        assert (await asyncio.wait_for(reader.readline(), 5)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_garbage_gets_the_error_object() -> None:
    async with serving(settings=QUICK) as server:
        for garbage in (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nbad header\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(garbage)
            got, _ = await until_cut(reader)
            head, _, body = got.partition(b"\r\n\r\n")
            assert head.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))
            assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
            writer.close()


async def test_no_more_connections_than_the_bound() -> None:
    async with serving(settings=ServerSettings(max_connections=4, close_s=0.2)) as server:
        opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(5)]
        reader, _ = opened[0]  # the oldest makes room
        _, took_s = await until_cut(reader)
        assert took_s < 2
        for _, writer in opened:
            writer.close()
