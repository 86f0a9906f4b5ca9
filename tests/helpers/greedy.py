"""The text that a model of transformers has by itself: the reference for every other way to run it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel


def greedy(model: PreTrainedModel, prompt: Sequence[int], count: int) -> tuple[list[int], float]:
    """`count` tokens in whole passes without a cache; and the least margin between the best two logits."""
    tokens, margin = list(prompt), float("inf")
    with torch.inference_mode():
        for _ in range(count):
            best = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            tokens.append(int(best.indices[0]))
    return tokens[len(prompt) :], margin
