"""How the next token is chosen from logits, as values. Formulas and order: docs/sampling.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TOP_LOGPROBS_LIMIT = 20
"""Alternatives that may be asked for beside a token's own log-probability."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 is greedy. `seed`: the same seed gives the same text whatever else is in the batch.

    top_k 0, top_p 1, min_p 0, repetition_penalty 1 and the other penalties 0 leave everything as it is.
    `logit_bias`: (token id, what is added to its logit). `min_tokens`: before so many, no stop token is chosen.
    `top_logprobs`: None: no log-probabilities; else those of the chosen token and of so many likeliest ones.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    min_tokens: int = 0
    top_logprobs: int | None = None

    @property
    def looks_back(self) -> bool:
        """Whether a choice depends on the tokens before it."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Draw:
    """One row to sample: how, and the index of the token in its answer (the draw depends on seed and index only).

    `prompt` and `generated` are empty unless the sampling looks back. `banned`: tokens that must not be chosen.
    """

    sampling: Sampling
    index: int
    prompt: tuple[int, ...] = ()
    generated: tuple[int, ...] = ()
    banned: frozenset[int] = frozenset()


def next_draw(
    sampling: Sampling,
    prompt: tuple[int, ...],
    generated: Sequence[int],
    stop_token_ids: frozenset[int],
    drafted: tuple[int, ...] = (),
) -> Draw:
    """The draw that follows `generated` and, as if they had been generated too, `drafted` tokens.

    What was generated is copied only for a sampling that looks back.
    """
    index = len(generated) + len(drafted)
    banned = stop_token_ids if index < sampling.min_tokens else frozenset[int]()
    if not sampling.looks_back:
        return Draw(sampling, index, banned=banned)
    return Draw(sampling, index, prompt, (*generated, *drafted), banned)
