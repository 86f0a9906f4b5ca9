"""One client's connection: aiohttp's HTTP protocol with a deadline on every request head, and errors as JSON.

aiohttp alone lets a half-sent head live as long as its keep-alive does, and answers garbage in plain text.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import Any, Final

import msgspec
from aiohttp import web

from vramancer_cli.serving.faults import BUG_SENTENCE, Fault
from vramancer_cli.serving.settings import ServerSettings

LOG: Final = logging.getLogger(__name__)
LINGER_S: Final = 5.0


class Connection(web.RequestHandler):
    """Cut when a request head is not complete `head_read_s` after the connection opened or the head began."""

    __slots__ = ("_head_deadline", "_server", "_settings")

    def __init__(self, server: web.Server, settings: ServerSettings, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=settings.keepalive_s,
            lingering_time=LINGER_S,
            access_log=None,  # pyright: ignore[reportArgumentType]  # None turns it off, the annotation forgot
        )
        self._server = server
        self._settings = settings
        self._head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._server.connections) > self._settings.max_connections:
            self.force_close()
        else:
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        heads_before = self._request_count
        super().data_received(data)
        if self._request_count > heads_before:
            self._stop_waiting()
        elif self._waiter is not None:  # idle, and yet not a whole head: one has begun
            self._expect_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """Whether no whole request head has come since it opened, or since the last answer."""
        return self._waiter is not None

    def _expect_head(self) -> None:
        if self._head_deadline is None:
            self._head_deadline = self._loop.call_later(self._settings.head_read_s, self.force_close)

    def _stop_waiting(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """A body that breaks off or is badly compressed is its sender's fault, and was answered already."""
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The reply to what never became a request, or to a failure outside every middleware."""
        if request.writer.output_size > 0:
            raise ConnectionError("the reply has begun, it can only be cut")
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            if not isinstance(exc, ConnectionResetError):  # a client that went away is nobody's failure
                LOG.error("a request failed outside every route", exc_info=exc)
            reply = fault_response(Fault(status, BUG_SENTENCE, "server_error", code="internal_error"))
        else:
            reply = fault_response(Fault(status, "This is not a valid HTTP request.", code="invalid_http"))
        reply.force_close()
        return reply


def end_oldest_idle(server: web.Server) -> bool:
    """False where every connection has asked for something."""
    idle = next((one for one in server.connections if isinstance(one, Connection) and one.is_idle), None)
    if idle is not None:
        idle.force_close()
    return idle is not None


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, headers=headers, content_type="application/json"
    )


def fault_response(fault: Fault) -> web.Response:
    return json_response(fault.body(), fault.status, dict(fault.headers))
