"""From a checked query to pieces of text: tokens in, generation, text out. One generator tells both kinds of reply.

Nothing of HTTP here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass

from vramancer_cli.errors import InvalidRequestError, VramancerError
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.runtime.contracts import Deployment, GenerationRequest
from vramancer_cli.serving.openai import ChatQuery, Options, TextQuery
from vramancer_cli.serving.replies import FinishReason
from vramancer_cli.serving.text import StopFilter, TextTools


class CutAnswerError(VramancerError):
    """The answer was cut before its end."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text that became certain (perhaps none) with `tokens` more tokens; the last piece has the finish reason."""

    text: str
    tokens: int
    finish_reason: FinishReason | None = None


async def prompt_tokens(query: ChatQuery | TextQuery, tools: TextTools, context_tokens: int) -> tuple[int, ...]:
    """Raises InvalidRequestError for a conversation, text or ids that this model cannot read."""
    _refuse_hopeless(query, context_tokens * tools.longest_token_characters, context_tokens)
    if isinstance(query, ChatQuery):
        return await asyncio.to_thread(tools.encode_chat, [asdict(message) for message in query.messages])
    if isinstance(query.prompt, str):
        ids = await asyncio.to_thread(tools.encode, query.prompt)
    else:
        ids = query.prompt
    if not ids:
        raise InvalidRequestError("'prompt' must not be empty.", param="prompt", code="invalid_value")
    if max(ids) >= tools.vocab_size:
        sentence = f"'prompt' holds token {max(ids)}; this model's vocabulary ends at {tools.vocab_size - 1}."
        raise InvalidRequestError(sentence, param="prompt", code="invalid_value")
    return ids


def _refuse_hopeless(query: ChatQuery | TextQuery, most_characters: int, context_tokens: int) -> None:
    """Before it is encoded, which costs some hundred bytes a character: what is too long however well it packs."""
    if isinstance(query, ChatQuery):
        characters, param = sum(len(message.content) for message in query.messages), "messages"
    else:
        characters, param = len(query.prompt) if isinstance(query.prompt, str) else 0, "prompt"
    if characters > most_characters:
        sentence = (
            f"This model's context holds {context_tokens} tokens; {characters} characters are far more than that."
        )
        raise InvalidRequestError(sentence, param=param, code="context_length_exceeded")


def generation_request(
    request_id: str,
    prompt: tuple[int, ...],
    options: Options,
    tools: TextTools,
    context_tokens: int,
    default_tokens: int,
) -> GenerationRequest:
    """`default_tokens` bounds an answer whose request names no limit. Raises InvalidRequestError."""
    return GenerationRequest(
        request_id=request_id,
        prompt=prompt,
        sampling=_sampling(options, tools),
        max_tokens=_fitting_tokens(len(prompt), options.max_tokens, context_tokens, default_tokens),
        stop_token_ids=tools.stop_token_ids,
    )


def _sampling(options: Options, tools: TextTools) -> Sampling:
    """What the request leaves open, the checkpoint decides; a seed that neither names is a fresh one.

    top_p 0 keeps the likeliest token alone, which is greedy.
    """
    seed = secrets.randbits(63) if options.seed is None else options.seed % 2**63
    temperature = tools.defaults.temperature if options.temperature is None else options.temperature
    top_p = tools.defaults.top_p if options.top_p is None else options.top_p
    return Sampling(temperature, top_p, seed) if top_p > 0 else Sampling(temperature=0.0, seed=seed)


def _fitting_tokens(prompt: int, asked: int | None, context: int, default: int) -> int:
    """How many tokens the answer may have; what was asked for is never silently shortened."""
    left = context - prompt
    needed = max(asked or 1, 1)
    if needed > left:
        answer = f" and {asked} for the answer" if asked else ""
        raise InvalidRequestError(
            f"This model's context holds {context} tokens; the request needs {prompt} for the prompt{answer}, "
            f"{prompt + needed} in all.",
            param="prompt" if left < 1 else "max_tokens",
            code="context_length_exceeded",
        )
    return asked or min(left, default)


async def answer(
    deployment: Deployment, request: GenerationRequest, tools: TextTools, stops: Sequence[str]
) -> AsyncGenerator[Piece, None]:
    """Pieces up to one with a finish reason. Closing this generator aborts the request.

    Raises NotReadyError, QueueFullError, NodeLostError, CutAnswerError.
    """
    detokenizer, filter_ = tools.detokenizer(request.prompt), StopFilter(stops)
    async with aclosing(deployment.generate(request)) as generated:
        async for item in generated:
            text, stopped = filter_.push(detokenizer.push(item.token_ids))
            if item.finish_reason and not stopped:
                rest, stopped = filter_.push(detokenizer.finish())
                text += rest if stopped else rest + filter_.finish()
            finish: FinishReason | None = "stop" if stopped else item.finish_reason
            yield Piece(text, len(item.token_ids), finish)
            if finish:
                return
    raise CutAnswerError
