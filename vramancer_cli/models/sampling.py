"""How the next token is chosen from logits, as values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sampling:
    """temperature 0 is greedy. `seed`: the same seed gives the same text whatever else is in the batch."""

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Draw:
    """One row to sample: how, and the index of the token in its sequence (the draw depends on seed and index only)."""

    sampling: Sampling
    index: int
