from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from tests.helpers.scripted_server import FixedAdmin, ListedRegistry, ScriptedDeployment, serving
from transport.errors import PortBusyError
from vramancer_cli.errors import UsageError
from vramancer_cli.serving.app import ROUTES, ApiServer, create_app
from vramancer_cli.serving.settings import ServerSettings

TOKEN = ServerSettings(api_token="a long secret", close_s=0.2)


async def error_of(reply: Any) -> dict[str, Any]:
    error = (await reply.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"]
    return error


def bare_app(settings: ServerSettings) -> web.Application:
    return create_app(ListedRegistry([]), FixedAdmin(), settings)


async def test_every_route_has_a_role_and_all_but_the_open_ones_ask_for_the_token() -> None:
    roles = {(method, path): role for method, path, role, _ in ROUTES}
    seen: set[tuple[str, str]] = set()
    async with serving(settings=TOKEN) as server, ClientSession(server.url) as http:
        for route in bare_app(TOKEN).router.routes():
            assert route.resource is not None
            method = "GET" if route.method == "HEAD" else route.method
            path = next(
                p for m, p in roles if m == method and p.split(":")[0] == route.resource.canonical.split("}")[0]
            )
            seen.add((method, path))
            async with http.request(route.method, path.replace("{model:.+}", "any")) as reply:
                assert (reply.status == 401) == (roles[method, path] != "open"), (route.method, path)
                if reply.status == 401 and route.method != "HEAD":
                    assert (await error_of(reply))["code"] == "invalid_api_key"
    assert seen == set(roles)
    assert {path for (_, path), role in roles.items() if role == "open"} == {
        "/", "/page.css", "/page.js", "/icon.svg", "/live", "/health"
    }  # fmt: skip


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
        await ApiServer.start(bare_app(ServerSettings()), "0.0.0.0", 0)
    async with serving(settings=TOKEN, host="0.0.0.0") as server, ClientSession(server.url) as http:
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
