"""The HTTP server: the table of routes with their roles, what every request passes, and its life from bind to close."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from aiohttp import web

from transport.types import Address
from vramancer_cli.runtime.contracts import Admin, Registry
from vramancer_cli.serving import admin as admin_routes
from vramancer_cli.serving import completions, page_routes
from vramancer_cli.serving.auth import Role, check_bind, refusal
from vramancer_cli.serving.connection import Connection, fault_response
from vramancer_cli.serving.context import ADMIN, REGISTRY, SETTINGS, TOKENIZERS, Tokenizers
from vramancer_cli.serving.faults import Fault, fault_of, is_bug
from vramancer_cli.serving.listen import close_sockets, open_sockets
from vramancer_cli.serving.settings import ServerSettings

LOG: Final = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ROUTES: Final[tuple[tuple[str, str, Role, Handler], ...]] = (
    *(("GET", path, "open", page_routes.file_handler(path)) for path in page_routes.FILES),
    ("GET", "/live", "open", admin_routes.live),
    ("GET", "/health", "open", admin_routes.live),
    ("GET", "/ready", "user", admin_routes.ready),
    ("GET", "/v1/models", "user", completions.models),
    ("GET", "/v1/models/{model:.+}", "user", completions.model),
    ("POST", "/v1/chat/completions", "user", completions.chat_completions),
    ("POST", "/v1/completions", "user", completions.completions),
    ("GET", "/api/nodes", "user", admin_routes.nodes),
    ("GET", "/api/pipeline/status", "user", admin_routes.pipeline_status),
    ("POST", "/api/invites", "admin", admin_routes.invites),
)
"""Every route and who may call it; a route that is not here is denied by the guard below."""

ROLES: Final = web.AppKey("roles", dict[Handler, Role])


def create_app(registry: Registry, admin: Admin, settings: ServerSettings) -> web.Application:
    """The whole API over one registry of models and one node's admin."""
    app = web.Application(middlewares=[_told_errors, _guard], client_max_size=settings.body_limit_bytes)
    app[REGISTRY], app[ADMIN], app[SETTINGS] = registry, admin, settings
    app[TOKENIZERS] = Tokenizers()
    roles: dict[Handler, Role] = {handler: role for _, _, role, handler in ROUTES}
    app[ROLES] = roles
    for method, path, _, handler in ROUTES:
        app.router.add_route(method, path, handler)
        if method == "GET":
            app.router.add_route("HEAD", path, handler)
    app.on_startup.append(_load_tokenizers)
    app.on_response_prepare.append(_plain_types)
    return app


async def _load_tokenizers(app: web.Application) -> None:
    """Before the first request, so that it does not pay for it, and a broken tokenizer is told at the start."""
    for deployment in app[REGISTRY].models():
        await app[TOKENIZERS].of(deployment)


async def _plain_types(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Content-Type-Options"] = "nosniff"


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
    """Host, Origin, role and token, before anything of the body is read."""
    headers = request.headers
    unknown_route = request.match_info.http_exception is not None
    fault = refusal(
        method=request.method,
        host=headers.get("Host"),
        origin=headers.get("Origin"),
        authorization=headers.get("Authorization"),
        own_address=_own_address(request),
        role="open" if unknown_route else request.app[ROLES].get(request.match_info.handler),
        settings=request.app[SETTINGS],
    )
    return fault_response(fault) if fault else await handler(request)


def _own_address(request: web.Request) -> str:
    """The address that the connection came in on, as a Host header spells it."""
    name: Any = request.get_extra_info("sockname")
    return str(name[0]).partition("%")[0] if name else ""


@dataclass(slots=True)
class ApiServer:
    """The app on its sockets. Made by `start`; whoever starts it closes it."""

    url: str
    port: int
    _runner: web.AppRunner
    _listeners: list[asyncio.Server]

    @classmethod
    async def start(cls, app: web.Application, host: str, port: int) -> ApiServer:
        """Port 0 takes a free one. Raises UsageError (address, token missing), PortBusyError."""
        settings = app[SETTINGS]
        check_bind(host, settings)
        sockets = await asyncio.to_thread(open_sockets, host, port)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=settings.close_s)
        try:
            await runner.setup()
        except BaseException:
            close_sockets(sockets)
            raise
        server, loop = cast("web.Server", runner.server), asyncio.get_running_loop()
        listeners = [
            await loop.create_server(lambda: Connection(server, settings, loop), sock=sock) for sock in sockets
        ]
        port = sockets[0].getsockname()[1]
        return cls(_url(host, port), port, runner, listeners)

    async def close(self) -> None:
        """Stops listening, gives running answers `close_s`, then cuts them."""
        for listener in self._listeners:
            listener.close()
        await self._runner.cleanup()


def _url(host: str, port: int) -> str:
    """Where a person on this machine finds the server."""
    near = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://{Address(near, port)}"
