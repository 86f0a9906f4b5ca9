"""From logits to the next token ids.

Must never keep state from one step to the next: a row's choice depends on nothing but the row and its draw.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch

from vramancer_cli.models.sampling import Draw


def choose_tokens(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """Logits [R, vocabulary] float32 and R draws in; R token ids out. A row's choice depends on nothing but the row."""
    greedy: list[int] = logits.argmax(-1).tolist()
    return [
        token if draw.sampling.temperature <= 0 else _draw_token(row, draw)
        for token, row, draw in zip(greedy, logits, draws, strict=True)
    ]


def uniform(draw: Draw) -> float:
    """The draw's own number in [0, 1): the same for the same seed and index, in whatever order tokens are drawn."""
    return random.Random(f"{draw.sampling.seed}:{draw.index}").random()  # noqa: S311  # text, not secrets


def _draw_token(logits: torch.Tensor, draw: Draw) -> int:
    """Inverse transform sampling from the softmax at the draw's temperature, cut to its nucleus.

    top_p: Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020): the smallest set of most likely
    tokens whose shares sum to at least top_p.
    """
    shares = torch.softmax((logits - logits.max()) / draw.sampling.temperature, -1)
    shares, order = shares.sort(descending=True, stable=True)
    sums = shares.cumsum(-1)
    if draw.sampling.top_p < 1:
        sums = sums[: 1 + int((sums < draw.sampling.top_p).sum())]
    total = float(sums[-1])
    # Below the total even after rounding, so that the search always ends at a token with a share of its own.
    wanted = min(uniform(draw) * total, math.nextafter(total, 0.0))
    place = int((sums <= wanted).sum())
    return int(order[min(place, sums.numel() - 1)])
