"""The routes /v1/chat/completions and /v1/completions: answers, whole or as a stream of events."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from aiohttp import web

from vramancer_cli.errors import VramancerError
from vramancer_cli.serving import sse
from vramancer_cli.serving.answer import answer, echoed, generation_request, prompt_tokens
from vramancer_cli.serving.body import read_body
from vramancer_cli.serving.connection import json_response
from vramancer_cli.serving.context import CALLER, IDEMPOTENCY, ROLE, SETTINGS, TOKENIZERS
from vramancer_cli.serving.draft import Draft, best
from vramancer_cli.serving.faults import Fault, RefusedError, fault_of, is_bug
from vramancer_cli.serving.idempotency import Keyed, keyed
from vramancer_cli.serving.model_routes import deployment_of
from vramancer_cli.serving.openai import ChatQuery, Options, TextQuery, parse_chat, parse_text
from vramancer_cli.serving.replies import ChatShape, Envelope, Piece, Shape, TextShape, Usage

LOG: Final = logging.getLogger(__name__)
STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


async def chat_completions(request: web.Request) -> web.StreamResponse:
    return await _complete(request, parse_chat(await read_body(request)))


async def completions(request: web.Request) -> web.StreamResponse:
    return await _complete(request, parse_text(await read_body(request)))


@dataclass(slots=True)
class _Telling:
    """Answers being told: their pieces, the shape of the reply, and the tokens counted so far."""

    pieces: AsyncGenerator[Piece, None]
    shape: Shape
    options: Options
    prompt_tokens: int
    completion_tokens: int = 0

    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.completion_tokens)


async def _complete(request: web.Request, query: ChatQuery | TextQuery) -> web.StreamResponse:
    telling = await _telling(request, query)
    key = keyed(request, request[CALLER], await read_body(request))
    if key is not None:
        return await _kept(request, telling, key)
    return await (_stream(request, telling) if query.options.stream else _whole(telling))


async def _kept(request: web.Request, telling: _Telling, key: Keyed) -> web.StreamResponse:
    """The answer that the key stands for: this one, which then goes on whoever leaves, or the first one's."""
    answers, is_stream = request.app[IDEMPOTENCY], telling.options.stream
    make = (lambda: _events(telling)) if is_stream else (lambda: _single(telling))
    kept = await answers.answer(key, make, lambda last: not is_stream or last == sse.DONE)
    async with aclosing(sse.with_silence(kept.told(), request.app[SETTINGS].ping_s)) as frames:
        if is_stream:
            return await _send(request, await anext(frames), frames)
        bodies = [frame async for frame in frames if frame is not None]
    return web.Response(body=bodies[0], content_type="application/json")


async def _single(telling: _Telling) -> AsyncGenerator[bytes, None]:
    yield msgspec.json.encode(await _told_whole(telling))


async def _events(telling: _Telling) -> AsyncGenerator[bytes, None]:
    """As `_frames`, without silences; a refusal is raised before the first."""
    async with aclosing(_as_events(telling.pieces)) as pieces:
        first = await anext(pieces)
        async with aclosing(_frames(telling, first, pieces)) as frames:
            async for frame in frames:
                yield frame


async def _as_events(pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece | None, None]:
    async with aclosing(pieces):
        async for piece in pieces:
            yield piece


async def _send(
    request: web.Request, first: bytes | None, frames: AsyncGenerator[bytes | None, None]
) -> web.StreamResponse:
    """A silence is None, and becomes a ping."""
    response = await _opened(request)
    write_s = request.app[SETTINGS].write_s
    await _write(request, response, first or sse.PING, write_s)
    try:
        async for frame in frames:
            await _write(request, response, frame or sse.PING, write_s)
    except VramancerError as error:  # the server ends, and the status is long sent
        await _write(request, response, sse.encode(fault_of(error).body()), write_s)
    return response


async def _opened(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers=STREAM_HEADERS)
    response.force_close()
    await response.prepare(request)
    return response


async def _telling(request: web.Request, query: ChatQuery | TextQuery) -> _Telling:
    deployment = await deployment_of(request, query.model)
    tools = await request.app[TOKENIZERS].of(deployment)
    options = query.options
    _check_priority(options, request[ROLE])
    prompt = await prompt_tokens(query, tools, deployment.context_tokens)
    default_tokens = request.app[SETTINGS].default_chat_tokens
    ask = generation_request(uuid.uuid4().hex, prompt, options, tools, deployment.context_tokens, default_tokens)
    envelope = Envelope(ask.request_id, int(time.time()), deployment.name, options.include_usage)
    shape = (ChatShape if isinstance(query, ChatQuery) else TextShape)(envelope, tools.token_bytes)
    pieces = answer(deployment, ask, tools, options.stop, echoed(query, tools))
    return _Telling(pieces, shape, options, len(prompt))


def _check_priority(options: Options, role: str) -> None:
    """Anybody may let others go first; to go first oneself is to make them wait. Raises RefusedError."""
    if options.priority < 0 and role != "admin":
        told = "A 'priority' below 0 goes before everybody's, which takes a key of role admin."
        raise RefusedError(Fault(403, told, "permission_error", "priority", "insufficient_role"))


async def _whole(telling: _Telling) -> web.Response:
    return json_response(await _told_whole(telling))


async def _told_whole(telling: _Telling) -> dict[str, Any]:
    drafts = [Draft() for _ in range(telling.options.best_of)]
    async with aclosing(telling.pieces) as pieces:
        async for piece in pieces:
            telling.completion_tokens += piece.tokens
            drafts[piece.choice].add(piece)
    kept = best(drafts, telling.options.n)
    told = [draft.told(with_scores=telling.options.sampling.top_logprobs is not None) for draft in kept]
    return telling.shape.whole(told, telling.usage())


async def _stream(request: web.Request, telling: _Telling) -> web.StreamResponse:
    """Waits for the first piece before the head goes out, so that a refusal still has its status."""
    settings = request.app[SETTINGS]
    async with aclosing(sse.with_silence(telling.pieces, settings.ping_s)) as events:
        first = await anext(events)
        response = await _opened(request)
        async with aclosing(_frames(telling, first, events)) as frames:
            async for frame in frames:
                await _write(request, response, frame, settings.write_s)
    return response


async def _write(request: web.Request, response: web.StreamResponse, frame: bytes, deadline_s: float) -> None:
    """Raises ConnectionResetError, after cutting the connection, when the client does not read."""
    try:
        async with asyncio.timeout(deadline_s):
            await response.write(frame)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client does not read its answer") from None


async def _frames(
    telling: _Telling, first: Piece | None, events: AsyncGenerator[Piece | None, None]
) -> AsyncGenerator[bytes, None]:
    """The answer as events. A failure becomes an error event, after which nothing comes, not even [DONE]."""
    for choice in range(telling.options.n):
        if (opening := telling.shape.opening(choice)) is not None:
            yield sse.encode(opening)
    try:
        for frame in _told(telling, first):
            yield frame
        async for piece in events:
            for frame in _told(telling, piece):
                yield frame
        if telling.options.include_usage:
            yield sse.encode(telling.shape.usage(telling.usage()))
        yield sse.DONE
    except Exception as error:  # the door of a stream: its status is long sent
        if is_bug(error):
            LOG.exception("an answer failed")
        yield sse.encode(fault_of(error).body())


def _told(telling: _Telling, piece: Piece | None) -> list[bytes]:
    """The events of one piece, and of a silence."""
    if piece is None:
        return [sse.PING]
    telling.completion_tokens += piece.tokens
    frames = [sse.encode(telling.shape.delta(piece))] if piece.text or piece.scores else []
    if piece.finish_reason is not None:
        frames.append(sse.encode(telling.shape.closing(piece.choice, piece.finish_reason)))
    return frames
