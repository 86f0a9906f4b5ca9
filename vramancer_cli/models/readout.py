"""What is read off a sequence's final hidden states, as values: the next token, log-probabilities, an embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from vramancer_cli.models.sampling import Draw

Pooling = Literal["mean", "last"]


@dataclass(frozen=True, slots=True)
class PromptReading:
    """What a request wants of its prompt beside an answer.

    `top_logprobs`: the log-probabilities of the prompt's own tokens, each with so many of the likeliest; None: none.
    `pooling`: its final hidden states, summed over all tokens ("mean": whoever asked divides) or the last one alone.
    """

    top_logprobs: int | None = None
    pooling: Pooling | None = None

    @property
    def every_token(self) -> bool:
        """Whether the final hidden state of every token of the prompt is needed."""
        return self.top_logprobs is not None or self.pooling == "mean"


NO_READING: Final = PromptReading()


@dataclass(frozen=True, slots=True)
class Readout:
    """What to make of one step row's `outputs`, the final hidden states of its last tokens.

    `targets`: the tokens that follow the first outputs, each to be scored with `top_logprobs` of the likeliest.
    `pooled`: sum up all outputs after the final norm. `draws`: choose the tokens that follow the last outputs, one
    each; several where tokens were drafted: each is drawn as if those drafted before it had been drawn.
    """

    sequence: int
    outputs: int
    draws: tuple[Draw, ...] = ()
    targets: tuple[int, ...] = ()
    top_logprobs: int = 0
    pooled: bool = False


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token's natural log-probability, before any processing, and the likeliest tokens of its place, best first.

    `logprob` is None for the first token of a prompt, which nothing foretells.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RowOutput:
    """What a Readout asked for: each field is empty where it asked for none.

    `tokens`: one per draw, also those behind a draft that was wrong; `scores`: as many, where they are wanted.
    """

    tokens: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    prompt_scores: tuple[TokenScore, ...] = ()
    pooled: tuple[float, ...] = ()
