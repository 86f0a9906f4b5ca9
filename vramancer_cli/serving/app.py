"""The HTTP server: the table of routes with their roles, what every request passes, and its life from bind to close."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from aiohttp import web

from transport.types import Address
from vramancer_cli.runtime.contracts import Admin, Registry
from vramancer_cli.serving import admin as admin_routes
from vramancer_cli.serving import completions, cors, embeddings, model_routes, page_routes
from vramancer_cli.serving.accepted_keys import AcceptedKeys
from vramancer_cli.serving.auth import Asked, Role, is_loopback
from vramancer_cli.serving.body import check_signed_body
from vramancer_cli.serving.connection import Connection, end_oldest_idle, fault_response
from vramancer_cli.serving.context import (
    ADMIN,
    CALLER,
    GATE,
    IDEMPOTENCY,
    REGISTRY,
    ROLE,
    SETTINGS,
    TOKENIZERS,
    Tokenizers,
)
from vramancer_cli.serving.door import Door, Entrance
from vramancer_cli.serving.exposure import check_exposure
from vramancer_cli.serving.faults import Fault, fault_of, is_bug
from vramancer_cli.serving.gate import Gate
from vramancer_cli.serving.https import ApiCertificate
from vramancer_cli.serving.idempotency import Idempotency
from vramancer_cli.serving.listen import close_sockets, open_sockets
from vramancer_cli.serving.settings import ServerSettings
from vramancer_cli.telemetry.security_log import SecurityLog

LOG: Final = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ROUTES: Final[tuple[tuple[str, str, Role, Handler], ...]] = (
    *(("GET", path, "open", page_routes.file_handler(path)) for path in page_routes.FILES),
    ("GET", "/live", "open", admin_routes.live),
    ("GET", "/health", "open", admin_routes.live),
    ("GET", "/ready", "user", admin_routes.ready),
    ("GET", "/v1/models", "user", model_routes.models),
    ("GET", "/v1/models/{model:.+}", "user", model_routes.model),
    ("POST", "/v1/chat/completions", "user", completions.chat_completions),
    ("POST", "/v1/completions", "user", completions.completions),
    ("POST", "/v1/embeddings", "user", embeddings.embeddings),
    ("GET", "/api/nodes", "user", admin_routes.nodes),
    ("GET", "/api/pipeline/status", "user", admin_routes.pipeline_status),
    ("GET", "/api/trace", "admin", admin_routes.trace),
    ("POST", "/api/invites", "admin", admin_routes.invites),
    ("POST", "/api/tokens", "admin", admin_routes.tokens),
    ("DELETE", "/api/nodes/{node}", "admin", admin_routes.remove_node),
    ("POST", "/api/nodes/{node}/drain", "admin", admin_routes.drain_node),
)
"""Every route and who may call it; a route that is not here is denied by the guard below."""

ROLES: Final = web.AppKey("roles", dict[Handler, Role])
KEY_HEADERS: Final = ("X-Api-Key", "X-API-TOKEN")
PROXY_HEADERS: Final = ("Forwarded", "X-Forwarded-For", "X-Real-IP", "Via")


def create_app(
    registry: Registry, admin: Admin, settings: ServerSettings, events: SecurityLog | None = None
) -> web.Application:
    """The whole API over one registry of models and one node's admin; `events`: that node's security log."""
    app = web.Application(middlewares=[_told_errors, _guard], client_max_size=settings.body_limit_bytes)
    app[REGISTRY], app[ADMIN], app[SETTINGS] = registry, admin, settings
    app[TOKENIZERS], app[GATE] = Tokenizers(), Gate(settings, events)
    app[IDEMPOTENCY] = Idempotency(AcceptedKeys(settings.state_folder, time.time()))
    roles: dict[Handler, Role] = {handler: role for _, _, role, handler in ROUTES}
    app[ROLES] = roles
    for method, path, _, handler in ROUTES:
        app.router.add_route(method, path, handler)
        if method == "GET":
            app.router.add_route("HEAD", path, handler)
    app.on_startup.append(_load_tokenizers)
    app.cleanup_ctx.append(_cut_revoked)
    app.on_shutdown.append(_end_kept)
    app.on_response_prepare.append(_mark_reply)
    return app


async def _load_tokenizers(app: web.Application) -> None:
    """Before the first request, so that it does not pay for it, and a broken tokenizer is told at the start."""
    for deployment in app[REGISTRY].models():
        await app[TOKENIZERS].of(deployment)


async def _cut_revoked(app: web.Application) -> AsyncGenerator[None, None]:
    """While the server runs: ends the answers of keys that were taken away."""
    watching = asyncio.create_task(app[GATE].cut_revoked())
    yield
    watching.cancel()
    await asyncio.wait({watching})


async def _end_kept(app: web.Application) -> None:
    """Answers that go on without their clients end with the server."""
    await app[IDEMPOTENCY].close()


async def _mark_reply(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.update(cors.reply_headers(request.headers.get("Origin"), request.app[SETTINGS].cors_origins))


@web.middleware
async def _told_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The door of every request: an error becomes OpenAI's error object with the right status."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return fault_response(_http_fault(error, request))
    except Exception as error:
        if request.transport is None or request.transport.is_closing():
            raise ConnectionResetError("the client is gone, nobody is left to tell") from error
        if is_bug(error):
            LOG.exception("%s %s failed", request.method, request.path)
        return fault_response(fault_of(error))


def _http_fault(error: web.HTTPException, request: web.Request) -> Fault:
    """What aiohttp itself refuses."""
    match error:
        case web.HTTPNotFound():
            return Fault(404, f"There is nothing at {request.path}.", code="not_found")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            sentence = f"{request.path} takes {allowed}, not {request.method}."
            return Fault(405, sentence, code="method_not_allowed", headers={"Allow": allowed})
        case web.HTTPRequestEntityTooLarge():
            limit = request.app[SETTINGS].body_limit_bytes
            return Fault(413, f"The request is larger than {limit} bytes.", code="request_too_large")
        case _:
            kind = "server_error" if error.status >= 500 else "invalid_request_error"
            return Fault(error.status, f"{error.reason}.", kind, code="http_error")


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Rate, Host, Origin, key and role, before anything of the body is read."""
    gate, asked = request.app[GATE], _asked(request)
    unknown_route = request.match_info.http_exception is not None
    role = "open" if unknown_route else request.app[ROLES].get(request.match_info.handler)
    caller = await gate.admit(asked, role)
    if _is_preflight(request):
        return web.Response(status=204, headers=cors.preflight_headers())
    request[ROLE], request[CALLER] = caller.role, caller.key.digest if caller.key is not None else ""
    with gate.running(caller):
        if caller.body is not None:
            await check_signed_body(request, caller.body)
        return await handler(request)


def _asked(request: web.Request) -> Asked:
    headers = request.headers
    return Asked(
        method=request.method,
        target=request.raw_path,
        host=headers.get("Host"),
        origin=headers.get("Origin"),
        upgrade="Upgrade" in headers,
        forwarded=any(name in headers for name in PROXY_HEADERS),
        peer=_address(request, "peername"),
        own_address=_address(request, "sockname"),
        secure=request.secure,
        authorization=headers.get("Authorization"),
        api_keys=tuple(headers[name] for name in KEY_HEADERS if name in headers),
    )


def _address(request: web.Request, end: str) -> str:
    """The IP at one end of the connection, as a Host header spells it; "" once it is gone."""
    name: Any = request.get_extra_info(end)
    return str(name[0]).partition("%")[0] if name else ""


def _is_preflight(request: web.Request) -> bool:
    """A browser asks whether a page of an origin that we know may ask; it shows no key then."""
    origins, headers = request.app[SETTINGS].cors_origins, request.headers
    asks = request.method == "OPTIONS" and "Access-Control-Request-Method" in headers
    return asks and cors.allowed(headers.get("Origin"), origins)


@dataclass(slots=True)
class ApiServer:
    """The app on its sockets. Made by `start`; whoever starts it closes it."""

    url: str
    port: int
    _runner: web.AppRunner
    _entrance: Entrance
    _listeners: list[asyncio.Server]

    @classmethod
    async def start(
        cls, app: web.Application, host: str, port: int, certificate: ApiCertificate | None = None
    ) -> ApiServer:
        """Port 0 takes a free one; with a certificate it takes HTTPS too. Raises UsageError, PortBusyError."""
        settings, gate = app[SETTINGS], app[GATE]
        check_exposure(host, settings, has_keys=bool(gate.keys.records()), can_https=certificate is not None)
        gate.listens_on(host)
        sockets = await asyncio.to_thread(open_sockets, host, port)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=settings.close_s)
        try:
            await runner.setup()
        except BaseException:
            close_sockets(sockets)
            raise
        server, loop = cast("web.Server", runner.server), asyncio.get_running_loop()
        entrance = Entrance(
            lambda: Connection(server, settings, loop),
            lambda: len(server.connections),
            lambda: end_oldest_idle(server),
            settings,
            certificate,
        )
        listeners = [await loop.create_server(lambda: Door(entrance), sock=sock) for sock in sockets]
        port = sockets[0].getsockname()[1]
        return cls(_url(host, port, certificate is not None), port, runner, entrance, listeners)

    @property
    def listens(self) -> tuple[str, ...]:
        """IP:PORT of each socket."""
        names = [sock.getsockname() for listener in self._listeners for sock in listener.sockets]
        return tuple(str(Address(name[0], name[1])) for name in names)

    async def close(self) -> None:
        """Stops listening, gives running answers `close_s`, then cuts them."""
        for listener in self._listeners:
            listener.close()
        await self._entrance.close()
        await self._runner.cleanup()


def _url(host: str, port: int, https: bool) -> str:
    """Where a person on this machine finds the server: in the clear only where nothing crosses a network."""
    near = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    scheme = "https" if https and not is_loopback(near) else "http"
    return f"{scheme}://{Address(near, port)}"
