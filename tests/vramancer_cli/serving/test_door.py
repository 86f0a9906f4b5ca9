from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from pathlib import Path

import pytest
from aiohttp import ClientSession
from openai import AsyncOpenAI, AuthenticationError, DefaultAsyncHttpxClient

from tests.helpers.api_trust import authority, certificate_of, keyed, verifying
from tests.helpers.scripted_server import ScriptedDeployment, serving
from vramancer_cli.serving.app import ApiServer
from vramancer_cli.serving.settings import ServerSettings

QUICK = ServerSettings(head_read_s=0.3, close_s=0.2)
GET = b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
CA = authority()


def hello_bytes(first_request: bytes = b"") -> tuple[bytes, ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    """A ClientHello, and what is needed to go on."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = verifying(CA).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read(), tls, incoming, outgoing


async def until_cut(reader: asyncio.StreamReader, deadline_s: float = 5) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(), deadline_s)
    except ConnectionError:
        return b""


async def answered(server: ApiServer) -> bool:
    """Whether the server takes one more plain request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(GET)
    got = await until_cut(reader)
    writer.close()
    return b'{"status":"ok"}' in got


async def test_one_port_takes_both_and_a_stream_comes_through_tls(folder: Path) -> None:
    deployment = ScriptedDeployment(folder)
    async with serving(deployment, certificate=certificate_of(CA)) as server, ClientSession() as http:
        for scheme in ("http", "https", "http", "https"):
            url = f"{scheme}://localhost:{server.port}/v1/completions"
            body = {"model": "scripted", "prompt": "hi", "stream": True}
            async with http.post(url, json=body, ssl=verifying(CA)) as reply:
                assert reply.status == 200 and b"[DONE]" in await reply.read()
    assert len(deployment.requests) == 4


async def test_the_official_client_by_https_with_a_key(folder: Path, tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path)
    deployment, certificate = ScriptedDeployment(folder), certificate_of(CA)
    async with serving(deployment, settings=settings, host="0.0.0.0", certificate=certificate) as server:
        async with (
            DefaultAsyncHttpxClient(verify=verifying(CA)) as http,
            AsyncOpenAI(
                base_url=f"https://localhost:{server.port}/v1", api_key=by_role["user"], http_client=http
            ) as api,
        ):
            answer = await api.completions.create(model="scripted", prompt="hi")
            assert answer.choices[0].text == deployment.text
            with pytest.raises(AuthenticationError, match="not valid"):
                await api.with_options(api_key="wrong").models.list()


async def test_without_a_certificate_tls_is_no_http() -> None:
    async with serving(settings=QUICK) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(hello_bytes()[0])
        assert (await until_cut(reader)).split(b" ")[1] == b"400"
        writer.close()


async def test_a_hello_in_single_bytes_and_a_request_in_the_last_flight() -> None:
    """What the first read brings, and what comes before aiohttp stands behind TLS, is not lost."""
    async with serving(certificate=certificate_of(CA)) as server:
        hello, tls, incoming, outgoing = hello_bytes()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(len(hello)):
            writer.write(hello[place : place + 1])
            await asyncio.sleep(0)
        while True:
            incoming.write(await asyncio.wait_for(reader.read(65536), 5))
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                break
        tls.write(GET)
        writer.write(outgoing.read())  # Finished and the request in one segment
        got = b""
        while b'{"status":"ok"}' not in got:
            incoming.write(await asyncio.wait_for(reader.read(65536), 5))
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                while more := tls.read():
                    got += more
        writer.close()


async def test_a_handshake_that_stalls_is_cut() -> None:
    async with serving(settings=QUICK, certificate=certificate_of(CA)) as server:
        hello = hello_bytes()[0]
        for part in (hello[:1], hello[:40], hello):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(part)
            await until_cut(reader)
            writer.close()
        assert await answered(server)


async def test_a_half_sent_head_inside_tls_is_cut_too() -> None:
    async with serving(settings=QUICK, certificate=certificate_of(CA)) as server:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port, ssl=verifying(CA), server_hostname="localhost"
        )
        writer.write(b"GET /live HTTP/1.1\r\nHost: local")
        assert await until_cut(reader) == b""
        writer.close()


async def test_a_silent_connection_is_cut_at_the_door() -> None:
    async with serving(settings=QUICK, certificate=certificate_of(CA)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        assert await until_cut(reader) == b""
        writer.close()


async def test_connections_at_the_door_and_in_handshakes_count() -> None:
    """Stalled handshakes and open requests share one bound; and each gives its place back."""
    settings = ServerSettings(max_connections=3, close_s=0.2)
    async with serving(settings=settings, certificate=certificate_of(CA)) as server:
        opened = []
        asks = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"
        for first in (hello_bytes()[0][:50], hello_bytes()[0][:60], asks):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(first)
            await writer.drain()
            opened.append((reader, writer))
        await asyncio.sleep(0.1)
        assert not await answered(server)
        for _, writer in opened:
            writer.close()
        async with asyncio.timeout(5):
            while not await answered(server):
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("first", [b"", GET[:10]], ids=["silent", "half a head"])
async def test_a_crowd_that_asks_for_nothing_keeps_nobody_out(first: bytes) -> None:
    settings = ServerSettings(max_connections=4, head_read_s=60, close_s=0.2)
    async with serving(settings=settings, certificate=certificate_of(CA)) as server:
        crowd = []
        for _ in range(12):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(first)
            await writer.drain()
            crowd.append((reader, writer))
            await asyncio.sleep(0.01)
        for reader, _ in crowd[:8]:
            assert await until_cut(reader) == b"", "the oldest makes room"
        assert await answered(server)
        for _, writer in crowd:
            writer.close()


async def test_whoever_resets_in_the_middle_gives_the_place_back() -> None:
    settings = ServerSettings(max_connections=2, head_read_s=60, close_s=0.2)
    hello = hello_bytes()[0]
    async with serving(settings=settings, certificate=certificate_of(CA)) as server:
        for number in range(60):
            with socket.create_connection(("127.0.0.1", server.port)) as sock:
                sock.sendall((hello, hello[:30], b"\x16garbage" * 9, b"")[number % 4])
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await asyncio.sleep(0.005)
        async with asyncio.timeout(5):
            while not await answered(server):
                await asyncio.sleep(0.05)


async def test_garbage_after_the_first_byte_is_cut_and_no_news(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(settings=QUICK, certificate=certificate_of(CA)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"\x16\x03\x01\x02\x00" + b"x" * 600)
        await until_cut(reader)
        writer.close()
        assert await answered(server)
    assert not caplog.records


async def test_closing_cuts_whoever_is_at_the_door() -> None:
    settings = ServerSettings(head_read_s=60, close_s=0.2)
    async with serving(settings=settings, certificate=certificate_of(CA)) as server:
        opened = []
        for first in (b"", hello_bytes()[0][:50]):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(first)
            await writer.drain()
            opened.append((reader, writer))
        await asyncio.sleep(0.1)
        await server.close()
        for reader, writer in opened:
            assert await until_cut(reader) == b""
            writer.close()
        assert [task for task in asyncio.all_tasks() if "_shake_hands" in repr(task)] == []
