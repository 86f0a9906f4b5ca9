"""How a request wants its tokens chosen, and what of it the checkpoint decides. Pure.

Names and ranges after the public OpenAI API reference; top_k, min_p, repetition_penalty, min_tokens and stop_token_ids
are fields of our own, named as in transformers. docs/sampling.md has formulas and order.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

from vramancer_cli.errors import InvalidRequestError
from vramancer_cli.models.sampling import TOP_LOGPROBS_LIMIT, Sampling
from vramancer_cli.serving.fields import Body, boolean, integer, is_number, number, refused, token_ids, wrong

Number = TypeVar("Number", int, float)

MAX_SEED: Final = 2**63
MAX_TOP_K: Final = 2**31 - 1
LEAST_REPETITION_PENALTY: Final = 0.1
MOST_REPETITION_PENALTY: Final = 10.0
MOST_PENALTY: Final = 2.0
MOST_BIAS: Final = 100.0
MAX_BIASES: Final = 1024
MAX_STOP_TOKEN_IDS: Final = 128


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What the request says; None is left to the checkpoint, and a seed that nobody names is a fresh one.

    `logit_bias`: (token id, bias), ids not yet compared with any vocabulary.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    top_logprobs: int | None = None
    seed: int | None = None


def parse_sampling(body: Body, top_logprobs: int | None) -> SamplingParams:
    """`top_logprobs`: as the endpoint asks for them. Raises InvalidRequestError naming the parameter at fault."""
    return SamplingParams(
        temperature=number(body, "temperature", low=0.0, high=2.0),
        top_p=number(body, "top_p", low=0.0, high=1.0),
        top_k=integer(body, "top_k", low=-1, high=MAX_TOP_K),
        min_p=number(body, "min_p", low=0.0, high=1.0),
        repetition_penalty=number(
            body, "repetition_penalty", low=LEAST_REPETITION_PENALTY, high=MOST_REPETITION_PENALTY
        ),
        presence_penalty=number(body, "presence_penalty", low=-MOST_PENALTY, high=MOST_PENALTY) or 0.0,
        frequency_penalty=number(body, "frequency_penalty", low=-MOST_PENALTY, high=MOST_PENALTY) or 0.0,
        logit_bias=_logit_bias(body.get("logit_bias")),
        min_tokens=integer(body, "min_tokens", low=0, high=2**31 - 1) or 0,
        top_logprobs=top_logprobs,
        seed=integer(body, "seed", low=-MAX_SEED, high=MAX_SEED - 1),
    )


def chat_logprobs(body: Body) -> int | None:
    """logprobs: true or false, and top_logprobs: how many likeliest tokens beside each; None for no logprobs."""
    asked = boolean(body, "logprobs")
    top = integer(body, "top_logprobs", low=0, high=TOP_LOGPROBS_LIMIT)
    if top and not asked:
        raise refused("top_logprobs", "'top_logprobs' needs 'logprobs': true.")
    return (top or 0) if asked else None


def text_logprobs(body: Body) -> int | None:
    """logprobs: how many likeliest tokens beside each; None for no logprobs."""
    return integer(body, "logprobs", low=0, high=TOP_LOGPROBS_LIMIT)


def stop_token_ids(body: Body) -> frozenset[int]:
    value = body.get("stop_token_ids")
    if value is None or value == []:
        return frozenset()
    expected = f"a list of at most {MAX_STOP_TOKEN_IDS} token ids"
    ids = token_ids(value, "stop_token_ids", expected)
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise wrong("stop_token_ids", expected)
    return frozenset(ids)


def _logit_bias(value: Any) -> tuple[tuple[int, float], ...]:
    if value is None:
        return ()
    expected = f"an object of at most {MAX_BIASES} token ids, each with a bias from {-MOST_BIAS:g} to {MOST_BIAS:g}"
    if not isinstance(value, dict) or len(cast("dict[str, Any]", value)) > MAX_BIASES:
        raise wrong("logit_bias", expected)
    biases = cast("dict[str, Any]", value)
    for token, bias in biases.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise wrong("logit_bias", expected)
        if not is_number(bias) or not -MOST_BIAS <= bias <= MOST_BIAS:
            raise wrong("logit_bias", expected)
    return tuple((token, float(bias)) for token, bias in {int(t): b for t, b in biases.items()}.items())


def chosen(params: SamplingParams, defaults: Sampling, vocab_size: int) -> Sampling:
    """What the request leaves open, the checkpoint decides. top_p 0 keeps the likeliest token alone, which is greedy.

    Raises InvalidRequestError for a bias outside the vocabulary.
    """
    highest = max((token for token, _ in params.logit_bias), default=0)
    if highest >= vocab_size:
        sentence = f"'logit_bias' names token {highest}; this model's vocabulary ends at {vocab_size - 1}."
        raise InvalidRequestError(sentence, param="logit_bias", code="invalid_value")
    top_p = _or(params.top_p, defaults.top_p)
    return Sampling(
        temperature=_or(params.temperature, defaults.temperature) if top_p > 0 else 0.0,
        top_p=top_p or 1.0,
        seed=secrets.randbits(63) if params.seed is None else params.seed % MAX_SEED,
        top_k=max(0, _or(params.top_k, defaults.top_k)),
        min_p=_or(params.min_p, defaults.min_p),
        repetition_penalty=_or(params.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=params.logit_bias,
        min_tokens=params.min_tokens,
        top_logprobs=params.top_logprobs,
    )


def _or(asked: Number | None, default: Number) -> Number:
    return default if asked is None else asked
