from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.helpers.scripted_server import FixedAdmin, ScriptedDeployment, serving
from vramancer_cli.errors import UsageError
from vramancer_cli.serving import cors
from vramancer_cli.serving.settings import ServerSettings

SITE = "https://chat.example"
OPEN_TO_SITE = ServerSettings(cors_origins=frozenset({SITE}), close_s=0.2)
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


def test_origins_are_exact_and_written_as_browsers_do() -> None:
    assert cors.parse_origins("") == frozenset()
    found = cors.parse_origins(" https://Chat.Example , http://localhost:3000,https://a.example:443/,http://[::1]:80")
    assert found == {"https://chat.example", "http://localhost:3000", "https://a.example", "http://[::1]"}


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "https://a.example,*",
        "https://*.example",
        "null",
        "chat.example",
        "ftp://a.example",
        "https://a.example/path",
        "https://a.example?x",
        "https://user@a.example",
        "https://a.example:port",
        "https://",
        "https://[::1",
    ],
)
def test_anything_else_is_no_origin_and_the_star_least_of_all(text: str) -> None:
    with pytest.raises(UsageError):
        cors.parse_origins(text)


@pytest.mark.parametrize(
    ("origin", "ours"),
    [
        (SITE, True),
        ("https://chat.example:443", True),
        ("http://chat.example", False),
        ("https://chat.example:8443", False),
        ("https://chat.example.evil.example", False),
        ("https://evilchat.example", False),
        ("null", False),
        (None, False),
    ],
)
def test_only_the_same_scheme_host_and_port_is_the_same_origin(origin: str | None, ours: bool) -> None:
    assert cors.allowed(origin, frozenset({SITE})) is ours


async def test_without_origins_no_reply_lets_another_site_read() -> None:
    async with serving() as server, ClientSession(server.url) as http:
        async with http.get("/v1/models", headers={"Origin": SITE}) as reply:
            assert reply.status == 200
            assert not [name for name in reply.headers if name.lower().startswith("access-control")]
        async with http.options("/v1/completions", headers={"Origin": SITE, **PREFLIGHT}) as reply:
            assert reply.status == 403


async def test_the_preflight_of_a_known_origin_is_answered_without_a_key() -> None:
    settings = ServerSettings(api_token="secret", cors_origins=frozenset({SITE}), close_s=0.2)
    async with serving(settings=settings) as server, ClientSession(server.url) as http:
        async with http.options("/v1/chat/completions", headers={"Origin": SITE, **PREFLIGHT}) as reply:
            assert reply.status == 204
            assert reply.headers["Access-Control-Allow-Origin"] == SITE
            assert "POST" in reply.headers["Access-Control-Allow-Methods"]
            assert "authorization" in reply.headers["Access-Control-Allow-Headers"].lower()
            assert reply.headers["Vary"] == "Origin"
            assert "Access-Control-Allow-Credentials" not in reply.headers
        async with http.post("/v1/chat/completions", json={}, headers={"Origin": SITE}) as reply:
            assert reply.status == 401
            assert reply.headers["Access-Control-Allow-Origin"] == SITE, "else the page cannot read why"
        for origin, status in (("https://evil.example", 403), ("http://localhost:3000", 405)):
            async with http.options("/v1/models", headers={"Origin": origin, **PREFLIGHT}) as reply:
                assert reply.status == status
                assert not [name for name in reply.headers if name.lower().startswith("access-control")]


async def test_a_stream_carries_the_headers_too(folder: Path) -> None:
    async with serving(ScriptedDeployment(folder), settings=OPEN_TO_SITE) as server, ClientSession(server.url) as http:
        body = {"model": "scripted", "prompt": "hi", "stream": True, "max_tokens": 2}
        async with http.post("/v1/completions", json=body, headers={"Origin": SITE}) as reply:
            assert reply.status == 200 and reply.headers["Access-Control-Allow-Origin"] == SITE
            assert b"[DONE]" in await reply.read()


async def test_a_page_that_was_let_in_asks_but_lets_no_machine_join() -> None:
    async with serving(admin=FixedAdmin(), settings=OPEN_TO_SITE) as server, ClientSession(server.url) as http:
        async with http.get("/api/nodes", headers={"Origin": SITE}) as reply:
            assert reply.status == 200
        async with http.post("/api/invites", headers={"Origin": SITE}) as reply:
            assert reply.status == 403
        async with http.post("/api/invites", headers={"Origin": "https://evil.example"}) as reply:
            assert reply.status == 403
            assert "Access-Control-Allow-Origin" not in reply.headers
