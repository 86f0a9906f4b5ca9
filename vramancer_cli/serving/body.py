"""A request's body: read whole, within the size and the time that it may take, and compared with what was signed."""

from __future__ import annotations

import asyncio
import hmac

from aiohttp import web

from vramancer_cli.serving.context import SETTINGS
from vramancer_cli.serving.faults import Fault, RefusedError
from vramancer_cli.serving.signing import body_digest


async def read_body(request: web.Request) -> bytes:
    """The whole body, within the application's size limit. Raises RefusedError when it comes too slowly, or broken."""
    try:
        async with asyncio.timeout(request.app[SETTINGS].body_read_s):
            return await request.read()
    except TimeoutError:
        sentence = "The request's body did not come in time."
        raise RefusedError(Fault(408, sentence, code="timeout", headers={"Connection": "close"})) from None
    except web.RequestPayloadError:
        sentence = "The request's body is not what its headers say."
        raise RefusedError(Fault(400, sentence, code="invalid_http", headers={"Connection": "close"})) from None


async def check_signed_body(request: web.Request, digest: str) -> None:
    """Raises RefusedError where the body is not the one that was signed. What was read stays with the request."""
    if not hmac.compare_digest(body_digest(await read_body(request)), digest):
        sentence = "The body is not the one that was signed."
        raise RefusedError(Fault(401, sentence, code="body_not_signed", headers={"Connection": "close"}))
