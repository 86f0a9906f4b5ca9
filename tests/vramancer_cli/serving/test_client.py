from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from tests.helpers.api_trust import authority, certificate_of, keyed
from tests.helpers.scripted_server import FixedAdmin, ScriptedDeployment, cluster_status, serving
from vramancer_cli.errors import (
    DaemonUnreachableError,
    InvalidRequestError,
    NodeLostError,
    NotReadyError,
    UntrustedServerError,
    UsageError,
    VramancerError,
)
from vramancer_cli.serving import keys
from vramancer_cli.serving.client import ApiClient, ChatDelta
from vramancer_cli.serving.settings import ServerSettings

HELLO = [{"role": "user", "content": "hello"}]
T = TypeVar("T")


async def away(work: Callable[[], T]) -> T:
    """Runs blocking work in a thread, while the server answers on this loop."""
    return await asyncio.wait_for(asyncio.to_thread(work), 20)


async def test_status_nodes_and_invitations() -> None:
    admin = FixedAdmin()
    async with serving(admin=admin) as server:
        api = ApiClient(server.url)
        assert await away(api.status) == cluster_status()
        assert (await away(lambda: api.status(fresh=True))).nodes[0].layer_tokens == 10
        assert await away(api.invite) == ("4-otter-maple-drum", 600.0)


async def test_a_chat_streams_and_ends_with_reason_and_counts(folder: Path) -> None:
    deployment = ScriptedDeployment(folder, text="One model — 漢🙂.")
    async with serving(deployment) as server:
        deltas = await away(lambda: list(ApiClient(server.url).chat(HELLO, temperature=0.5, max_tokens=40)))
    assert "".join(delta.text for delta in deltas) == "One model — 漢🙂."
    assert sum(bool(delta.text) for delta in deltas) > 3
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]
    prompt = len(deployment.requests[0].prompt)
    assert deltas[-1] == ChatDelta(prompt_tokens=prompt, completion_tokens=len(deployment.tokens))
    assert deployment.requests[0].sampling.temperature == 0.5 and deployment.requests[0].max_tokens == 40


async def test_closing_the_iterator_hangs_up_and_aborts(folder: Path) -> None:
    endless = ScriptedDeployment(folder, endless=True, pause_s=0.01)

    def look_once(url: str) -> None:
        answer = ApiClient(url).chat(HELLO)
        next(answer)
        answer.close()  # type: ignore[attr-defined]

    async with serving(endless) as server:
        await away(lambda: look_once(server.url))
        await asyncio.wait_for(endless.aborted.wait(), 5)


async def test_a_cut_answer_raises(folder: Path) -> None:
    lost = ScriptedDeployment(folder, text="half", error=NodeLostError("The node 'attic' was lost.", node="attic"))
    async with serving(lost) as server:
        with pytest.raises(NodeLostError, match="attic"):
            await away(lambda: list(ApiClient(server.url).chat(HELLO)))


@pytest.mark.parametrize(
    "ending",
    [
        b"0\r\n\r\n",  # a clean end of the body, but no [DONE]
        b"",  # cut between chunks
        b"40\r\ndata: {",  # cut within a chunk
    ],
)
async def test_a_stream_without_done_is_a_cut_answer(ending: bytes) -> None:
    event = b'data: {"choices":[{"index":0,"delta":{"content":"half"}}]}\n\n'

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n")
        writer.write(b"%x\r\n%s\r\n%s" % (len(event), event, ending))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        got: list[ChatDelta] = []
        with pytest.raises(VramancerError, match="cut"):
            await away(lambda: got.extend(ApiClient(f"http://127.0.0.1:{port}").chat(HELLO, model="m")))


async def test_the_servers_sentences_arrive_as_its_errors(folder: Path) -> None:
    waiting = FixedAdmin(replace(cluster_status(), state="waiting", reason="0.4 GiB are missing."))
    async with serving(admin=waiting) as server:
        with pytest.raises(NotReadyError, match=r"0\.4 GiB"):
            await away(lambda: list(ApiClient(server.url).chat(HELLO)))
        with pytest.raises(NotReadyError, match=r"0\.4 GiB"):
            await away(lambda: list(ApiClient(server.url).chat(HELLO, model="scripted")))
    async with serving(ScriptedDeployment(folder), admin=FixedAdmin(head=False)) as server:
        with pytest.raises(InvalidRequestError) as caught:
            await away(lambda: list(ApiClient(server.url).chat(HELLO, temperature=9)))
        assert caught.value.param == "temperature"
        with pytest.raises(UsageError, match="head"):
            await away(ApiClient(server.url).invite)


async def test_the_token_is_sent_and_its_lack_is_explained() -> None:
    async with serving(settings=ServerSettings(api_token="secret", close_s=0.2)) as server:
        assert (await away(ApiClient(server.url, token="secret").status)).cluster == "attic"
        with pytest.raises(UsageError) as caught:
            await away(ApiClient(server.url).status)
        assert "VRM_API_TOKEN" in caught.value.hint


async def test_nobody_there_and_somebody_else_there() -> None:
    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\nServer: AirTunes\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(hello, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(DaemonUnreachableError, match="not VRAMancer"):
            await away(ApiClient(url).status)
    with pytest.raises(DaemonUnreachableError) as caught:
        await away(ApiClient(url).status)
    assert url in str(caught.value) and caught.value.exit_code == 3


async def test_a_server_that_says_nothing_is_given_up() -> None:
    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as server:
        started = time.monotonic()
        with pytest.raises(DaemonUnreachableError, match="in time"):
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            await away(ApiClient(url, timeout_s=0.2).status)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("url", ["ftp://here", "http://", "http://host:port", "http://host:99999", "http://[::1"])
def test_a_wrong_url_is_wrong_use(url: str) -> None:
    with pytest.raises(UsageError):
        ApiClient(url)


def test_an_address_without_a_scheme_will_do() -> None:
    assert ApiClient("localhost:5000").url == "http://localhost:5000"


def test_importing_the_client_loads_nothing_heavy() -> None:
    code = (
        "import sys, vramancer_cli.serving.client;"
        "print([m for m in ('aiohttp', 'msgspec', 'transformers', 'torch', 'asyncio') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- trust ----------------------------------------------------------------------------------------------------


async def test_https_is_checked_against_the_clusters_authority() -> None:
    ca = authority()
    pem = ca.certificate_pem.decode()
    async with serving(certificate=certificate_of(ca)) as server:
        url = f"https://localhost:{server.port}"
        assert (await away(ApiClient(url, ca_pem=pem).status)).cluster == "attic"
        for wrong in (None, authority().certificate_pem.decode()):
            with pytest.raises(UntrustedServerError, match="cannot prove") as caught:
                await away(ApiClient(url, "secret", ca_pem=wrong).status)
            assert caught.value.exit_code == 4


async def test_a_key_never_crosses_the_network_in_the_clear(tmp_path: Path) -> None:
    """0.0.0.0 is this machine, by a name that is no loopback one: the client must take it for another machine's."""
    seen = bytearray()

    async def record(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    key = keys.make_key()
    async with await asyncio.start_server(record, "127.0.0.1", 0) as server:
        with pytest.raises(DaemonUnreachableError):
            await away(ApiClient(f"http://0.0.0.0:{server.sockets[0].getsockname()[1]}", key).status)
    assert b"VRM-HMAC-SHA256" in seen and key.encode() not in seen and b"Bearer" not in seen
    settings, by_role = keyed(tmp_path, allow_lan_http=True, host_names=frozenset({"0.0.0.0"}))
    async with serving(settings=settings, host="0.0.0.0") as server:
        api = ApiClient(f"http://0.0.0.0:{server.port}", by_role["admin"])
        assert (await away(lambda: api.status(fresh=True))).cluster == "attic"
        assert await away(api.invite) == ("4-otter-maple-drum", 600.0)
        with pytest.raises(UsageError, match="role admin"):
            await away(ApiClient(f"http://0.0.0.0:{server.port}", by_role["user"]).invite)


async def test_the_owners_key_is_used_only_when_a_key_is_asked_for(tmp_path: Path) -> None:
    settings, _ = keyed(tmp_path)
    own = next(record for record in keys.read(tmp_path) if record.role == "admin")
    async with serving(settings=settings) as server:
        assert (await away(ApiClient(server.url, own_key=own).status)).cluster == "attic"
    assert not (tmp_path / "signed.json").exists(), "nothing was signed on an open loopback"
    async with serving(settings=replace(settings, production=True)) as server:
        api = ApiClient(server.url, own_key=own)
        for _ in range(3):
            assert await away(api.invite) == ("4-otter-maple-drum", 600.0)
        keys.revoke(tmp_path, "admin")
        with pytest.raises(UsageError, match="not valid"):
            await away(api.invite)


def test_a_typing_mistake_in_a_key_is_told_before_anything_is_sent() -> None:
    key = keys.make_key()
    ApiClient("http://127.0.0.1:1", key)
    for wrong in (key[:-1], key[:10] + ("a" if key[10] != "a" else "b") + key[11:]):
        with pytest.raises(UsageError, match="typing mistake") as caught:
            ApiClient("http://127.0.0.1:1", wrong)
        assert key[8:30] not in f"{caught.value} {caught.value.hint}"


async def test_refusals_that_say_what_to_do_are_wrong_use() -> None:
    settings = ServerSettings(rate_limit=1, close_s=0.2)
    async with serving(settings=settings) as server:
        await away(ApiClient(server.url).status)
        with pytest.raises(VramancerError, match=r"Try again in \d+ s"):
            await away(ApiClient(server.url).status)
