"""Routes about the node itself: liveness, readiness, the nodes and their layers, invitations."""

from __future__ import annotations

import json
from typing import Final, cast

from aiohttp import web

from vramancer_cli.errors import DoesNotFitError, UsageError
from vramancer_cli.serving.body import read_body
from vramancer_cli.serving.connection import json_response
from vramancer_cli.serving.context import ADMIN
from vramancer_cli.serving.faults import RETRY_NOT_READY_S, Fault, RefusedError, unavailable

TOKEN_HOURS: Final = 24
TRACE_S: Final = 5.0
MOST_TRACE_S: Final = 60.0
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


async def tokens(request: web.Request) -> web.Response:
    """A new join token; `reusable` and `hours` in the body. It is told here, once, and kept nowhere."""
    asked = await _object(request)
    reusable, hours = asked.get("reusable", False), asked.get("hours", TOKEN_HOURS)
    if not isinstance(reusable, bool) or isinstance(hours, bool) or not isinstance(hours, int | float):
        raise RefusedError(Fault(400, "'reusable' is true or false, and 'hours' a number.", param="hours"))
    try:
        made = await request.app[ADMIN].make_token(reusable=reusable, hours=hours)
    except UsageError as error:
        raise RefusedError(Fault(409, f"{error} {error.hint}".strip(), code="no_token")) from error
    body = {"token": made.token, "id": made.id, "valid_s": made.valid_s, "reusable": made.reusable}
    return json_response(body, status=201)


async def remove_node(request: web.Request) -> web.Response:
    """Remove the node of this name or id from the cluster, for ever."""
    try:
        node = await request.app[ADMIN].remove(request.match_info["node"])
    except UsageError as error:
        raise RefusedError(Fault(409, f"{error} {error.hint}".strip(), code="not_removed")) from error
    return json_response({"id": node, "removed": True})


async def trace(request: web.Request) -> web.Response:
    """What every node's threads did in the last `seconds` (query; MOST_TRACE_S at most)."""
    seconds = _seconds(request.query.get("seconds", ""))
    try:
        told = await request.app[ADMIN].trace(seconds)
    except UsageError as error:
        raise RefusedError(Fault(409, f"{error} {error.hint}".strip(), code="not_the_head")) from error
    return json_response(told.to_json())


def _seconds(text: str) -> float:
    try:
        seconds = float(text or TRACE_S)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MOST_TRACE_S:
        raise RefusedError(Fault(400, f"'seconds' is a number up to {MOST_TRACE_S:.0f}.", param="seconds"))
    return seconds


async def drain_node(request: web.Request) -> web.Response:
    """Have other nodes take over what the node of this name or id holds; answers once it holds nothing."""
    try:
        node = await request.app[ADMIN].drain(request.match_info["node"])
    except (UsageError, DoesNotFitError) as error:
        raise RefusedError(Fault(409, f"{error} {error.hint}".strip(), code="not_drained")) from error
    return json_response({"id": node, "drained": True})


async def _object(request: web.Request) -> dict[str, object]:
    """The body's JSON object; an empty body is an empty one."""
    raw = await read_body(request)
    try:
        value = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RefusedError(Fault(400, "The body is not a JSON object."))
    return cast("dict[str, object]", value)
