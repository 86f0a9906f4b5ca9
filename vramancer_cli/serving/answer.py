"""From a checked query to pieces of text: tokens in, generation, text out. One generator tells both kinds of reply.

Nothing of HTTP here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace

from vramancer_cli.errors import InvalidRequestError, VramancerError
from vramancer_cli.models.readout import TokenScore
from vramancer_cli.runtime.contracts import Deployment, Generated, GenerationRequest
from vramancer_cli.serving.fields import refused
from vramancer_cli.serving.openai import ChatQuery, Options, TextQuery
from vramancer_cli.serving.replies import FinishReason, Piece
from vramancer_cli.serving.sampling_params import chosen
from vramancer_cli.serving.text import StopFilter, TextTools


class CutAnswerError(VramancerError):
    """The answer was cut before its end."""


async def prompt_tokens(query: ChatQuery | TextQuery, tools: TextTools, context_tokens: int) -> tuple[int, ...]:
    """Raises InvalidRequestError for a conversation, text or ids that this model cannot read."""
    if isinstance(query, TextQuery):
        return await text_tokens(query.prompt, "prompt", tools, context_tokens)
    characters = sum(len(message.content) for message in query.messages)
    _refuse_hopeless(characters, "messages", tools, context_tokens)
    return await asyncio.to_thread(tools.encode_chat, [asdict(message) for message in query.messages])


async def text_tokens(
    text: str | tuple[int, ...], param: str, tools: TextTools, context_tokens: int
) -> tuple[int, ...]:
    """Token ids of a text, or of ids that are in the vocabulary. Raises InvalidRequestError naming `param`."""
    if isinstance(text, str):
        _refuse_hopeless(len(text), param, tools, context_tokens)
        text = await asyncio.to_thread(tools.encode, text)
    if not text:
        raise refused(param, f"'{param}' must not be empty.")
    if max(text) >= tools.vocab_size:
        sentence = f"'{param}' holds token {max(text)}; this model's vocabulary ends at {tools.vocab_size - 1}."
        raise refused(param, sentence)
    return text


def _refuse_hopeless(characters: int, param: str, tools: TextTools, context_tokens: int) -> None:
    """Before it is encoded, which costs some hundred bytes a character: what is too long however well it packs."""
    if characters > context_tokens * tools.longest_token_characters:
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
    sampling = chosen(options.sampling, tools.defaults, tools.vocab_size)
    if options.best_of > options.n and sampling.top_logprobs is None:
        sampling = replace(sampling, top_logprobs=0)  # the answers are ranked by them
    max_tokens = _fitting_tokens(len(prompt), options.max_tokens, context_tokens, default_tokens)
    return GenerationRequest(
        request_id=request_id,
        prompt=prompt,
        sampling=sampling,
        max_tokens=max_tokens,
        stop_token_ids=tools.stop_token_ids | options.stop_token_ids,
        choices=options.best_of,
        prompt_logprobs=_prompt_logprobs(options, max_tokens),
        priority=-options.priority,
    )


def _prompt_logprobs(options: Options, max_tokens: int) -> int | None:
    """An echo with log-probabilities needs the prompt's; and a prompt that nothing follows is always read."""
    asked = options.sampling.top_logprobs
    return (asked or 0) if options.echo and (asked is not None or max_tokens == 0) else None


def _fitting_tokens(prompt: int, asked: int | None, context: int, default: int) -> int:
    """How many tokens the answer may have; what was asked for is never silently shortened."""
    left = context - prompt
    needed = 1 if asked is None else asked
    if needed > left:
        answer = f" and {asked} for the answer" if asked else ""
        raise InvalidRequestError(
            f"This model's context holds {context} tokens; the request needs {prompt} for the prompt{answer}, "
            f"{prompt + needed} in all.",
            param="prompt" if left < 1 else "max_tokens",
            code="context_length_exceeded",
        )
    return min(left, default) if asked is None else asked


def echoed(query: ChatQuery | TextQuery, tools: TextTools) -> str | None:
    """The prompt's text, where the answer is to begin with it."""
    if isinstance(query, ChatQuery) or not query.options.echo:
        return None
    return query.prompt if isinstance(query.prompt, str) else tools.decode(query.prompt)


class _Choice:
    """One choice's tokens on their way to text."""

    def __init__(self, number: int, request: GenerationRequest, tools: TextTools, stops: Sequence[str]) -> None:
        self.number = number
        self._detokenizer = tools.detokenizer(request.prompt)
        self._stops = StopFilter(stops)
        self._free_tokens = request.sampling.min_tokens  # of which no text is a stop string

    def push(self, item: Generated) -> Piece:
        self._free_tokens -= len(item.token_ids)
        text, stopped = self._let_out(self._detokenizer.push(item.token_ids))
        if item.finish_reason and not stopped:
            rest, stopped = self._let_out(self._detokenizer.finish())
            text += rest if stopped else rest + self._stops.finish()
        finish: FinishReason | None = "stop" if stopped else item.finish_reason
        return Piece(text, len(item.token_ids), finish, self.number, item.scores)

    def _let_out(self, text: str) -> tuple[str, bool]:
        return (text, False) if self._free_tokens >= 0 and text else self._stops.push(text)


async def answer(
    deployment: Deployment,
    request: GenerationRequest,
    tools: TextTools,
    stops: Sequence[str],
    echo: str | None = None,
) -> AsyncGenerator[Piece, None]:
    """Pieces up to one with a finish reason for every choice. Closing this generator aborts the request.

    `echo`: a text that every choice begins with, the prompt's own, with its scores where the request wants them.
    Raises NotReadyError, QueueFullError, NodeLostError, CutAnswerError.
    """
    left = {number: _Choice(number, request, tools, stops) for number in range(request.choices)}
    echoes = [] if echo is None else [Piece(echo, choice=number) for number in left]
    wants_scores = request.sampling.top_logprobs is not None
    async with (
        aclosing(deployment.generate(request)) as generated,
        aclosing(_prompt_first(generated, request)) as items,
    ):
        async for item in items:
            for piece in echoes:
                yield replace(piece, scores=item.prompt_scores if wants_scores else ())
            echoes = []
            if (choice := left.get(item.choice)) is None:
                continue
            piece = choice.push(item)
            yield piece
            if piece.finish_reason:
                del left[item.choice]
                if not left:
                    return
                if not item.finish_reason:
                    deployment.drop(request.request_id, item.choice)
    raise CutAnswerError


async def _prompt_first(
    generated: AsyncGenerator[Generated, None], request: GenerationRequest
) -> AsyncGenerator[Generated, None]:
    """The items; where the prompt is scored, none before all of it is, and the first has all the scores."""
    scores = [TokenScore(request.prompt[0], None)]
    waiting: list[Generated] = []
    unscored = request.prompt_logprobs is not None
    async for item in generated:
        if not unscored:
            yield item
            continue
        scores += item.prompt_scores
        waiting.append(replace(item, prompt_scores=()))
        if len(scores) == len(request.prompt):
            unscored = False
            yield replace(waiting[0], prompt_scores=tuple(scores))
            for later in waiting[1:]:
                yield later
