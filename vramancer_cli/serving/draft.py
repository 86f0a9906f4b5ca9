"""Answers that are told whole: pieces gathered choice by choice, and the best of several. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from vramancer_cli.models.readout import TokenScore
from vramancer_cli.serving.answer import CutAnswerError
from vramancer_cli.serving.replies import FinishReason, Piece, Told


@dataclass(slots=True)
class Draft:
    """One choice while its pieces come."""

    texts: list[str] = field(default_factory=list[str])
    scores: list[TokenScore] = field(default_factory=list[TokenScore])
    own_logprobs: list[float] = field(default_factory=list[float])
    finish_reason: FinishReason | None = None

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.scores += piece.scores
        if piece.tokens:  # an echoed prompt is none of the answer's own
            self.own_logprobs += [score.logprob for score in piece.scores if score.logprob is not None]
        self.finish_reason = piece.finish_reason or self.finish_reason

    def told(self, *, with_scores: bool) -> Told:
        """Raises CutAnswerError for a choice that did not end."""
        if self.finish_reason is None:
            raise CutAnswerError
        return Told("".join(self.texts), self.finish_reason, tuple(self.scores) if with_scores else None)


def best(drafts: Sequence[Draft], count: int) -> list[Draft]:
    """The `count` of the highest log-probability per token, best first; as they are where none is to be left out."""
    if len(drafts) == count:
        return list(drafts)
    return sorted(drafts, key=_mean_logprob, reverse=True)[:count]


def _mean_logprob(draft: Draft) -> float:
    """An answer without a token is the worst: it says nothing."""
    return math.fsum(draft.own_logprobs) / len(draft.own_logprobs) if draft.own_logprobs else -math.inf
