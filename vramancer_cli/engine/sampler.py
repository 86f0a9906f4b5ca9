"""From logits to the next token ids and to log-probabilities.

Must never keep state from one step to the next: a row's choice depends on nothing but the row and its draw.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from vramancer_cli.engine import logits as processing
from vramancer_cli.models.readout import TokenScore
from vramancer_cli.models.sampling import Draw


def choose_tokens(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """Logits [R, vocabulary] float32, which this may change, and R draws in; R token ids out."""
    processing.process(logits, draws)
    drawn = [row for row, draw in enumerate(draws) if draw.sampling.temperature > 0]
    if len(drawn) == len(draws):
        return _draw(logits, draws)
    chosen: list[int] = logits.argmax(-1).tolist()
    if drawn:
        for row, token in zip(drawn, _draw(logits[drawn], [draws[row] for row in drawn]), strict=True):
            chosen[row] = token
    return chosen


def uniform(draw: Draw) -> float:
    """The draw's own number in [0, 1): the same for the same seed and index, in whatever order tokens are drawn."""
    return random.Random(f"{draw.sampling.seed}:{draw.index}").random()  # noqa: S311  # text, not secrets


def _draw(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """Inverse transform sampling from the shares, in the order of the vocabulary.

    Not in the order of the shares: two that are nearly equal may change places with rounding, and with them all that
    is drawn between them; a place in the vocabulary never moves.
    """
    sums = processing.shares(logits, [draw.sampling for draw in draws]).cumsum_(-1)
    totals = sums[:, -1:].cpu()
    # Below the total even after rounding, so that the search always ends at a token with a share of its own.
    wanted = torch.tensor([[uniform(draw)] for draw in draws]) * totals
    wanted = torch.minimum(wanted, torch.nextafter(totals, torch.zeros_like(totals))).to(logits.device)
    return torch.searchsorted(sums, wanted, right=True)[:, 0].tolist()


def score_tokens(logprobs: torch.Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenScore]:
    """What [R, vocabulary] log-probabilities say of R tokens, each with so many of the likeliest."""
    own = logprobs.gather(-1, torch.tensor(tokens, dtype=torch.int64).to(logprobs.device)[:, None])[:, 0].tolist()
    values, ids = (part.tolist() for part in logprobs.topk(min(max(tops, default=0), logprobs.shape[-1])))
    return [
        TokenScore(token, logprob, tuple(zip(ids[row][:top], values[row][:top], strict=True)))
        for row, (token, logprob, top) in enumerate(zip(tokens, own, tops, strict=True))
    ]
