from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, web

from tests.helpers.api_trust import FAR, authority, bearer, certificate_of, keyed, verifying
from tests.helpers.scripted_server import FixedAdmin, ListedRegistry, ScriptedDeployment, serving
from transport.errors import PortBusyError
from vramancer_cli.errors import UsageError
from vramancer_cli.serving import app as app_module
from vramancer_cli.serving import keys
from vramancer_cli.serving.app import ROLES, ROUTES, ApiServer, create_app
from vramancer_cli.serving.auth import GRANTS, Role
from vramancer_cli.serving.settings import ServerSettings

TOKEN = ServerSettings(api_token="a long secret", close_s=0.2)


async def error_of(reply: Any) -> dict[str, Any]:
    error = (await reply.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"]
    return error


def bare_app(settings: ServerSettings) -> web.Application:
    return create_app(ListedRegistry([]), FixedAdmin(), settings)


async def _metrics(_request: web.Request) -> web.Response:
    return web.Response(text="up 1")


def walked_app(settings: ServerSettings) -> web.Application:
    """The real app, and one route of the role that no route has yet."""
    app = bare_app(settings)
    app.router.add_get("/test/metrics", _metrics)
    app[ROLES][_metrics] = "metrics"
    return app


def places(app: web.Application) -> list[tuple[str, str, Role]]:
    """(method, path, role) of every route that the app has registered, read from its router."""
    roles: dict[tuple[str, str], Role] = {(method, path): role for method, path, role, _ in ROUTES}
    found: list[tuple[str, str, Role]] = []
    for route in app.router.routes():
        assert route.resource is not None and route.method != "*"
        path = route.resource.canonical
        table = {(m, re.sub(r":[^}]*}", "}", p)): role for (m, p), role in roles.items()}
        table["GET", "/test/metrics"] = "metrics"
        role = table["GET" if route.method == "HEAD" else route.method, path]
        found.append((route.method, re.sub(r"{.*?}", "any", path), role))
    return found


@asynccontextmanager
async def listening(app: web.Application, host: str) -> AsyncIterator[ApiServer]:
    server = await ApiServer.start(app, host, 0, certificate_of(authority()))
    try:
        yield server
    finally:
        await server.close()


async def test_every_route_asks_for_a_key_of_its_role_and_passes_the_right_one(tmp_path: Path) -> None:
    """The route table itself is walked, on a bind that other machines reach."""
    settings, by_role = keyed(tmp_path, wrong_keys_limit=1000)
    app = walked_app(settings)
    walked = places(app)
    async with listening(app, "0.0.0.0") as server, ClientSession(server.url) as http:
        for method, path, role in walked:
            for held in (None, "wrong", *by_role):
                headers = bearer(by_role.get(held, held)) if held else {}
                async with http.request(method, path, headers=headers) as reply:
                    expected = status_for(role, held)
                    assert (reply.status if reply.status in {401, 403, 429} else 0) == expected, (method, path, held)
                    if expected and method != "HEAD":
                        assert (await error_of(reply))["code"] in {"invalid_api_key", "insufficient_role"}
    seen = {role for _, _, role in walked}
    assert seen == {"open", "user", "admin", "metrics"}
    assert {path for _, path, role in walked if role == "open"} == {
        "/", "/page.css", "/page.js", "/icon.svg", "/openapi.json", "/live", "/health"
    }  # fmt: skip
    assert {method for method, _, _ in walked} >= {"GET", "HEAD", "POST"}


def status_for(role: Role, held: str | None) -> int:
    """0: let in."""
    if role == "open":
        return 0
    if held is None or held == "wrong":
        return 401
    return 0 if role in GRANTS[held] else 403  # type: ignore[index]


async def test_no_other_method_of_a_path_reaches_anything(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path, wrong_keys_limit=1000)
    app = walked_app(settings)
    walked = places(app)
    known = {(method, path) for method, path, _ in walked}
    async with listening(app, "0.0.0.0") as server, ClientSession(server.url) as http:
        for path in {path for _, path, _ in walked}:
            for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
                if (method, path) not in known:
                    async with http.request(method, path, headers=bearer(by_role["admin"])) as reply:
                        assert reply.status == 405, (method, path)


async def test_loopback_is_open_to_every_route_although_there_are_keys(tmp_path: Path) -> None:
    settings, _ = keyed(tmp_path)
    app = walked_app(settings)
    walked = places(app)
    async with listening(app, "127.0.0.1") as server, ClientSession(server.url) as http:
        for method, path, _ in walked:
            async with http.request(method, path) as reply:
                assert reply.status not in {401, 403}, (method, path)


async def test_in_production_loopback_asks_for_a_key_too(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path, production=True)
    async with serving(settings=settings) as server, ClientSession(server.url) as http:
        async with http.get("/v1/models") as reply:
            assert reply.status == 401
        async with http.get("/v1/models", headers=bearer(by_role["user"])) as reply:
            assert reply.status == 200
    with pytest.raises(UsageError, match="VRM_PRODUCTION"):
        await ApiServer.start(bare_app(ServerSettings(production=True)), "127.0.0.1", 0)


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"])
async def test_what_a_proxy_forwards_does_not_come_from_this_machine(header: str) -> None:
    async with serving() as server, ClientSession(server.url) as http:
        async with http.get("/v1/models", headers={header: "1.1 someone"}) as reply:
            assert reply.status == 401


@pytest.mark.parametrize("header", ["X-Api-Key", "X-API-TOKEN", "x-api-token"])
async def test_the_other_headers_for_a_key(header: str) -> None:
    async with serving(settings=TOKEN) as server, ClientSession(server.url) as http:
        for key, status in (("a long secret", 200), ("another", 401)):
            async with http.get("/v1/models", headers={header: key}) as reply:
                assert reply.status == status


async def test_plain_http_from_another_machine_is_told_to_use_https(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address is the one thing that is made up here: another machine cannot be had."""
    real = app_module._address
    monkeypatch.setattr(app_module, "_address", lambda r, end: FAR if end == "peername" else real(r, end))
    settings, by_role = keyed(tmp_path)
    ca = authority()
    async with serving(settings=settings, host="0.0.0.0", certificate=certificate_of(ca)) as server:
        async with ClientSession() as http:
            for path in ("/live", "/v1/models", "/"):
                url = f"http://127.0.0.1:{server.port}{path}"
                async with http.get(url, headers=bearer(by_role["admin"])) as reply:
                    assert reply.status == 403
                    assert (await error_of(reply))["code"] == "https_required"
            url = f"https://127.0.0.1:{server.port}/v1/models"
            async with http.get(url, headers=bearer(by_role["user"]), ssl=verifying(ca)) as reply:
                assert reply.status == 200
    settings, by_role = keyed(tmp_path / "relaxed", allow_lan_http=True)
    async with serving(settings=settings, host="0.0.0.0") as server, ClientSession(server.url) as http:
        async with http.get("/v1/models", headers=bearer(by_role["user"])) as reply:
            assert reply.status == 200


async def test_a_request_over_the_limit_gets_429_and_how_long_to_wait() -> None:
    async with serving(settings=ServerSettings(rate_limit=2, close_s=0.2)) as server, ClientSession(server.url) as http:
        for status in (200, 200, 429):
            async with http.get("/v1/models") as reply:
                assert reply.status == status
                if status == 429:
                    assert 1 <= int(reply.headers["Retry-After"]) <= 30
                    error = await error_of(reply)
                    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limited")


async def test_a_websocket_of_a_strange_page_is_refused_before_it_opens() -> None:
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade |= {"Sec-WebSocket-Key": "x3JJHMbDL1EzLkh9GBhXDw=="}
    async with serving() as server, ClientSession(server.url) as http:
        async with http.get("/v1/models", headers={**upgrade, "Origin": "https://evil.example"}) as reply:
            assert reply.status == 403
            assert (await error_of(reply))["code"] == "origin_not_allowed"
        async with http.get("/v1/models", headers={**upgrade, "Origin": server.url}) as reply:
            assert reply.status == 200


async def test_revoking_a_key_cuts_its_running_answer_and_no_other(tmp_path: Path, folder: Path) -> None:
    settings, by_role = keyed(tmp_path, revoked_s=0.05, production=True)
    deployment = ScriptedDeployment(folder, endless=True, pause_s=0.01, context_tokens=10**6)
    body = {"model": "scripted", "prompt": "hi", "stream": True, "max_tokens": 10**5}
    async with serving(deployment, settings=settings) as server, ClientSession(server.url) as http:
        async with (
            http.post("/v1/completions", json=body, headers=bearer(by_role["user"])) as cut,
            http.post("/v1/completions", json=body, headers=bearer(by_role["admin"])) as other,
        ):
            await cut.content.readline()
            keys.revoke(tmp_path, "user")
            got = b""
            with suppress(ClientError):
                got = await asyncio.wait_for(cut.content.read(), 10)
            assert b"[DONE]" not in got
            await asyncio.wait_for(deployment.aborted.wait(), 5)
            await other.content.readline()
            assert await asyncio.wait_for(other.content.readline(), 5) is not None
            assert not other.content.at_eof()


async def test_the_token_lets_in() -> None:
    async with serving(settings=TOKEN) as server, ClientSession(server.url) as http:
        async with http.get("/v1/models", headers={"Authorization": "Bearer a long secret"}) as reply:
            assert reply.status == 200
        async with http.get("/v1/models", headers={"Authorization": "Bearer another"}) as reply:
            assert reply.status == 401


async def test_a_route_outside_the_table_is_denied() -> None:
    async def forgotten(_request: web.Request) -> web.Response:
        return web.Response(text="secret")

    app = bare_app(ServerSettings(close_s=0.2))
    app.router.add_get("/forgotten", forgotten)
    server = await ApiServer.start(app, "127.0.0.1", 0)
    async with ClientSession(server.url) as http, http.get("/forgotten") as reply:
        assert reply.status == 403
        assert (await error_of(reply))["code"] == "no_role"
    await server.close()


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "evil.example"}, "host_not_allowed"),
        ({"Host": "evil.example:5000"}, "host_not_allowed"),
        ({"Origin": "https://evil.example"}, "origin_not_allowed"),
        ({"Origin": "null"}, "origin_not_allowed"),
    ],
)
async def test_strange_hosts_and_origins_are_refused(folder: Path, headers: dict[str, str], code: str) -> None:
    deployment = ScriptedDeployment(folder)
    async with serving(deployment) as server, ClientSession(server.url) as http:
        for path in ("/api/invites", "/v1/completions"):
            async with http.post(path, json={"model": "scripted", "prompt": "hi"}, headers=headers) as reply:
                assert reply.status == 403
                assert (await error_of(reply))["code"] == code
    assert deployment.requests == []


async def test_a_strange_host_may_not_even_read_the_page() -> None:
    async with serving() as server, ClientSession(server.url) as http:
        for path in ("/", "/live", "/api/nodes", "/nowhere"):
            async with http.get(path, headers={"Host": "evil.example"}) as reply:
                assert reply.status == 403


async def test_a_page_of_this_machine_may_write(folder: Path) -> None:
    async with serving(ScriptedDeployment(folder)) as server, ClientSession(server.url) as http:
        for origin in (server.url, "http://localhost:8080"):
            async with http.post("/api/invites", headers={"Origin": origin}) as reply:
                assert reply.status == 201


async def test_names_given_in_the_settings_are_hosts() -> None:
    settings = ServerSettings(host_names=frozenset({"attic.local"}), close_s=0.2)
    async with serving(settings=settings) as server, ClientSession(server.url) as http:
        async with http.get("/live", headers={"Host": "attic.local:5000"}) as reply:
            assert reply.status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/nowhere", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/completions", 405, "method_not_allowed"),
        ("GET", "/v1/models/absent", 404, "model_not_found"),
        ("POST", "/v1/completions", 400, "invalid_json"),
    ],
)
async def test_refusals_have_the_error_object(folder: Path, method: str, path: str, status: int, code: str) -> None:
    async with serving(ScriptedDeployment(folder)) as server, ClientSession(server.url) as http:
        async with http.request(method, path) as reply:
            assert reply.status == status
            assert (await error_of(reply))["code"] == code
            assert ("Allow" in reply.headers) == (status == 405)
            assert reply.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_413(folder: Path, chunked: bool) -> None:
    settings = ServerSettings(body_limit_bytes=1000, close_s=0.2)

    async def parts() -> Any:
        for _ in range(20):
            yield b"x" * 100

    async with serving(ScriptedDeployment(folder), settings=settings) as server, ClientSession(server.url) as http:
        async with http.post("/v1/completions", data=parts() if chunked else b"x" * 2000) as reply:
            assert reply.status == 413
            assert "1000" in (await error_of(reply))["message"]


async def test_a_bug_is_a_500_that_tells_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    deployment = ScriptedDeployment(folder, error=ZeroDivisionError("secret detail"), error_first=True)
    async with serving(deployment) as server, ClientSession(server.url) as http:
        async with http.post("/v1/completions", json={"model": "scripted", "prompt": "hi"}) as reply:
            assert reply.status == 500
            assert "secret" not in str(await error_of(reply))
    assert "secret detail" in caplog.text


async def test_head_answers_like_get_without_a_body() -> None:
    async with serving() as server, ClientSession(server.url) as http:
        async with http.head("/") as reply:
            assert reply.status == 200 and await reply.read() == b""


async def test_another_bind_than_loopback_needs_a_token() -> None:
    with pytest.raises(UsageError):
        await ApiServer.start(bare_app(ServerSettings()), "0.0.0.0", 0, certificate_of(authority()))
    with pytest.raises(UsageError, match="HTTPS"):
        await ApiServer.start(bare_app(TOKEN), "0.0.0.0", 0)
    certificate = certificate_of(authority())
    async with (
        serving(settings=TOKEN, host="0.0.0.0", certificate=certificate) as server,
        ClientSession(server.url) as http,
    ):
        assert server.url == f"http://127.0.0.1:{server.port}"
        async with http.get("/v1/models") as reply:
            assert reply.status == 401


async def test_a_busy_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(PortBusyError, match=str(other.getsockname()[1])):
            await ApiServer.start(bare_app(ServerSettings()), "127.0.0.1", other.getsockname()[1])


async def test_after_close_the_port_is_free_and_a_running_answer_is_cut(folder: Path) -> None:
    deployment = ScriptedDeployment(folder, endless=True, pause_s=0.01, context_tokens=10**6)
    async with serving(deployment) as server, ClientSession(server.url) as http:
        body = {"model": "scripted", "prompt": "hi", "stream": True, "max_tokens": 10**5}
        async with http.post("/v1/completions", json=body) as reply:
            await reply.content.readline()
            await server.close()
            got = b""
            try:
                got = await reply.content.read()
            except Exception as error:
                assert "payload" in str(error).lower() or "closed" in str(error).lower()
            assert b"[DONE]" not in got
        with socket.create_server(("127.0.0.1", server.port)):
            pass
        await deployment.aborted.wait()
