"""What a request does to its logits before a token is drawn: biases, penalties, and which tokens stay.

Rows are independent of each other in every function. Nothing is computed for rows that did not ask for it. Formulas and
order are those of transformers' generation/logits_process.py; frequency and presence penalty are OpenAI's.
Must never see text, and never keep state from one step to the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Final

import torch

from vramancer_cli.models.sampling import Draw, Sampling

NUCLEUS_TOKENS: Final = 512
"""Most nuclei are smaller than this, and finding so few of the likeliest is much cheaper than sorting them all."""
LOOK_FIRST_FROM_TOKENS: Final = 16 * NUCLEUS_TOKENS
"""Of a smaller vocabulary it is not."""

LEAST_TEMPERATURE: Final = torch.finfo(torch.float32).tiny

Threshold = Callable[[torch.Tensor, Sequence[Sampling]], torch.Tensor]
"""Shares [R, vocabulary] and R samplings in; the least share that stays in each row out, [R, 1]."""


def process(logits: torch.Tensor, draws: Sequence[Draw]) -> None:
    """Change the rows of `logits` [R, vocabulary] float32 in place, as their draws ask."""
    for index, draw in enumerate(draws):
        sampling = draw.sampling
        if sampling.logit_bias:
            _bias(logits[index], sampling.logit_bias)
        if sampling.repetition_penalty != 1:
            _penalise_repetition(logits[index], {*draw.prompt, *draw.generated}, sampling.repetition_penalty)
        if draw.generated and (sampling.frequency_penalty or sampling.presence_penalty):
            _penalise_frequency(logits[index], Counter(draw.generated), sampling)
        if draw.banned:
            logits[index, _known(draw.banned, logits)] = -torch.inf


def _bias(row: torch.Tensor, biases: Sequence[tuple[int, float]]) -> None:
    known = [(token, bias) for token, bias in biases if token < row.numel()]
    row[[token for token, _ in known]] += row.new_tensor([bias for _, bias in known])


def _penalise_repetition(row: torch.Tensor, seen: Set[int], penalty: float) -> None:
    """Keskar et al., "CTRL" (2019): over prompt and answer."""
    ids = torch.tensor(list(seen), device=row.device)
    scores = row[ids]
    row[ids] = torch.where(scores < 0, scores * penalty, scores / penalty)


def _penalise_frequency(row: torch.Tensor, counts: Mapping[int, int], sampling: Sampling) -> None:
    """OpenAI's: over the answer alone, logit - count * frequency_penalty - [count > 0] * presence_penalty."""
    ids = torch.tensor(list(counts), device=row.device)
    often = row.new_tensor(list(counts.values()))
    row[ids] -= often * sampling.frequency_penalty + sampling.presence_penalty


def _known(tokens: Set[int], logits: torch.Tensor) -> list[int]:
    """A tokenizer may know tokens that the model has no logit for."""
    return [token for token in tokens if token < logits.shape[-1]]


def shares(logits: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """Each token's share of the draw, [R, vocabulary] float32; 0 for those that are cut off. Rows need not sum to 1.

    temperature, then top_k, top_p and min_p, each over what the one before has left. Every temperature is above 0.
    """
    # Above 0 in float32 too, which knows no 1e-50; and the best logit becomes 0 first: so that no temperature, however
    # low, makes one that is infinite or none.
    temperatures = _column(logits, [sampling.temperature for sampling in samplings]).clamp_(min=LEAST_TEMPERATURE)
    kept = torch.softmax((logits - logits.amax(-1, keepdim=True)).div_(temperatures), -1)
    _cut(kept, samplings, lambda sampling: sampling.top_k > 0, _top_k_threshold)
    _cut(kept, samplings, lambda sampling: sampling.top_p < 1, _top_p_threshold)
    _cut(kept, samplings, lambda sampling: sampling.min_p > 0, _min_p_threshold)
    return kept


def _cut(kept: torch.Tensor, samplings: Sequence[Sampling], asks: Callable[[Sampling], bool], least: Threshold) -> None:
    """Zero, in place, what is below the threshold in the rows that ask. Equal shares stay or go together."""
    rows = [row for row, sampling in enumerate(samplings) if asks(sampling)]
    if len(rows) == len(samplings):
        kept.masked_fill_(kept < least(kept, samplings), 0.0)
    elif rows:
        some = kept[rows]
        kept[rows] = some.masked_fill_(some < least(some, [samplings[row] for row in rows]), 0.0)


def _top_k_threshold(kept: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """The k-th largest share, [R, 1]: Fan et al., "Hierarchical Neural Story Generation" (2018)."""
    counts = [min(sampling.top_k, kept.shape[-1]) for sampling in samplings]
    places = torch.tensor([[count - 1] for count in counts], device=kept.device)
    return kept.topk(max(counts)).values.gather(-1, places)


def _top_p_threshold(kept: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """The smallest share of the nucleus, [R, 1]: the fewest likeliest that sum to at least top_p of all that is left.

    Holtzman et al., "The Curious Case of Neural Text Degeneration" (2020).
    """
    wanted = _column(kept, [sampling.top_p for sampling in samplings]) * kept.sum(-1, keepdim=True)
    best = _likeliest(kept, wanted)
    sums = best.cumsum(-1)
    # The first token whose sum reaches what is wanted; rounding may keep the last sum below it.
    places = (sums < wanted).sum(-1, keepdim=True).clamp_(max=best.shape[-1] - 1)
    return best.gather(-1, places)


def _likeliest(kept: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Shares in falling order, [R, n]: as many of the largest as sum to what is wanted, or all."""
    if kept.shape[-1] > LOOK_FIRST_FROM_TOKENS:
        best = kept.topk(NUCLEUS_TOKENS).values
        if bool((best.sum(-1, keepdim=True) > wanted).all()):
            return best
    return kept.sort(-1, descending=True).values


def _min_p_threshold(kept: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """min_p of the largest share, [R, 1]: Nguyen et al., "Turning Up the Heat" (2024)."""
    return _column(kept, [sampling.min_p for sampling in samplings]) * kept.amax(-1, keepdim=True)


def _column(like: torch.Tensor, values: Sequence[float]) -> torch.Tensor:
    return like.new_tensor(values)[:, None]
