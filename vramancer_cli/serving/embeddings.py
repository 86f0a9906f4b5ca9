"""The route /v1/embeddings: texts in, vectors of length 1 out, made of the model's own final hidden states.

Shapes after the public OpenAI API reference (embeddings); `pooling` is a field of our own.
"""

from __future__ import annotations

import asyncio
import base64
import math
import sys
import uuid
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args

from aiohttp import web

from vramancer_cli.errors import InvalidRequestError
from vramancer_cli.models.readout import Pooling
from vramancer_cli.runtime.contracts import Deployment, EmbeddingRequest
from vramancer_cli.serving.answer import text_tokens
from vramancer_cli.serving.body import read_body
from vramancer_cli.serving.connection import json_response
from vramancer_cli.serving.context import TOKENIZERS
from vramancer_cli.serving.fields import integer, json_object, model_name, refused, token_ids, wrong
from vramancer_cli.serving.model_routes import deployment_of
from vramancer_cli.serving.text import TextTools

EncodingFormat = Literal["float", "base64"]

MAX_INPUTS: Final = 1024
MAX_TOKENS: Final = 300_000
AT_ONCE: Final = 8
"""Inputs of one request that the model is asked for at a time: the others wait here, not in everybody's queue."""
MAX_DIMENSIONS: Final = 2**31 - 1
KINDS: Final = f"a string, a list of token ids, or a list of at most {MAX_INPUTS} of these"


@dataclass(frozen=True, slots=True)
class EmbeddingQuery:
    """`inputs`: texts, or token ids of the model's own vocabulary. `dimensions`: None, or the length to insist on."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    encoding_format: EncodingFormat = "float"
    dimensions: int | None = None
    pooling: Pooling = "mean"


def parse_embeddings(raw: bytes) -> EmbeddingQuery:
    """Raises InvalidRequestError naming the parameter at fault."""
    body = json_object(raw)
    return EmbeddingQuery(
        model=model_name(body),
        inputs=_inputs(body.get("input")),
        encoding_format=_one_of("encoding_format", body.get("encoding_format"), "float", get_args(EncodingFormat)),
        dimensions=integer(body, "dimensions", low=1, high=MAX_DIMENSIONS),
        pooling=_one_of("pooling", body.get("pooling"), "mean", get_args(Pooling)),
    )


def _inputs(value: Any) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise wrong("input", KINDS)
    items = cast("list[Any]", value)
    if not isinstance(items[0], (str, list)):
        return (token_ids(items, "input", KINDS),)
    if len(items) > MAX_INPUTS:
        raise wrong("input", KINDS)
    return tuple(item if isinstance(item, str) else token_ids(item, "input", KINDS) for item in items)


def _one_of(name: str, value: Any, default: Any, known: Sequence[str]) -> Any:
    if value is None:
        return default
    if value not in known:
        raise wrong(name, " or ".join(f"'{one}'" for one in known))
    return value


async def embeddings(request: web.Request) -> web.Response:
    query = parse_embeddings(await read_body(request))
    deployment = await deployment_of(request, query.model)
    tools = await request.app[TOKENIZERS].of(deployment)
    prompts = await _prompts(query, tools, deployment.context_tokens)
    vectors = await _vectors(deployment, prompts, query)
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, query.encoding_format)}
        for index, vector in enumerate(vectors)
    ]
    count = sum(map(len, prompts))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return json_response({"object": "list", "data": data, "model": deployment.name, "usage": usage})


async def _prompts(query: EmbeddingQuery, tools: TextTools, context_tokens: int) -> list[tuple[int, ...]]:
    """Raises InvalidRequestError for an input that the model cannot read, or too many tokens in all."""
    prompts: list[tuple[int, ...]] = []
    left = MAX_TOKENS
    for text in query.inputs:
        prompts.append(await text_tokens(text, "input", tools, context_tokens))
        left -= len(prompts[-1])
        if len(prompts[-1]) > context_tokens:
            sentence = f"This model's context holds {context_tokens} tokens; an input has {len(prompts[-1])}."
            raise InvalidRequestError(sentence, param="input", code="context_length_exceeded")
        if left < 0:
            raise refused("input", f"The inputs have more than {MAX_TOKENS} tokens together; send fewer at a time.")
    return prompts


async def _vectors(
    deployment: Deployment, prompts: Sequence[tuple[int, ...]], query: EmbeddingQuery
) -> list[array[float]]:
    places = asyncio.Semaphore(AT_ONCE)

    async def vector(prompt: tuple[int, ...]) -> array[float]:
        async with places:
            pooled = await deployment.embed(EmbeddingRequest(uuid.uuid4().hex, prompt, query.pooling))
        _check_dimensions(query.dimensions, len(pooled))
        return normalised(pooled)

    asking = [asyncio.create_task(vector(prompt)) for prompt in prompts]
    try:
        return await asyncio.gather(*asking)
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


def _check_dimensions(asked: int | None, present: int) -> None:
    if asked is not None and asked != present:
        raise refused("dimensions", f"This model's embeddings have {present} dimensions, and no other number.")


def normalised(vector: Sequence[float]) -> array[float]:
    """float32, of Euclidean length 1; zeros stay zeros."""
    length = math.sqrt(math.fsum(value * value for value in vector)) or 1.0
    return array("f", (value / length for value in vector))


def _written(vector: array[float], encoding_format: EncodingFormat) -> list[float] | str:
    """base64: of the float32 values, little-endian."""
    if encoding_format == "float":
        return vector.tolist()
    if sys.byteorder == "big":
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()
