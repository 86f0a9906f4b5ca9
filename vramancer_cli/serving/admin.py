"""Routes about the node itself: liveness, readiness, the nodes and their layers, invitations."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from vramancer_cli.errors import UsageError
from vramancer_cli.serving.connection import json_response
from vramancer_cli.serving.context import ADMIN
from vramancer_cli.serving.faults import RETRY_NOT_READY_S, Fault, RefusedError, unavailable

TRUE: Final = frozenset({"1", "true", "yes"})


async def live(_request: web.Request) -> web.Response:
    """The process answers; says nothing else, and so is open to everyone. /health is the same."""
    return json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """200 once a chat can be answered; until then 503 with the reason."""
    status = await request.app[ADMIN].status()
    if status.state != "ready":
        raise RefusedError(unavailable(status.reason or "The model is not ready yet.", "not_ready", RETRY_NOT_READY_S))
    return json_response({"status": "ready", "model": status.model})


async def nodes(request: web.Request) -> web.Response:
    """Every node with figures asked from it just now."""
    status = await request.app[ADMIN].status(fresh=True)
    return json_response({"object": "list", "data": status.to_json()["nodes"]})


async def pipeline_status(request: web.Request) -> web.Response:
    """The whole ClusterStatus; `?fresh=true` asks every worker first."""
    fresh = request.query.get("fresh", "").lower() in TRUE
    status = await request.app[ADMIN].status(fresh=fresh)
    return json_response(status.to_json())


async def invites(request: web.Request) -> web.Response:
    """A new pairing code."""
    try:
        invitation = await request.app[ADMIN].invite()
    except UsageError as error:
        raise RefusedError(Fault(409, f"{error} {error.hint}".strip(), code="not_the_head")) from error
    return json_response({"code": invitation.code, "valid_s": invitation.valid_s}, status=201)
