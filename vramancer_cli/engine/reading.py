"""What a step's final hidden states are read for: drawn tokens, log-probabilities of a prompt, sums for an embedding.

Rows of logits are large, so they are made in turns of a bounded number. Must never keep state between steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice

import torch

from transport.errors import LocalProtocolError
from vramancer_cli.engine.sampler import choose_tokens, score_tokens
from vramancer_cli.models.readout import Readout, RowOutput, TokenScore
from vramancer_cli.models.sampling import Draw

OnRows = Callable[[torch.Tensor], torch.Tensor]
Drawn = tuple[int, TokenScore | None]


@dataclass(frozen=True, slots=True)
class Reader:
    """`logits`: [R, hidden] in, fresh [R, vocabulary] float32 out, for at most `rows_at_once` rows; `normed`: after the
    final norm, [R, hidden]. Every method under torch.inference_mode."""

    logits: OnRows
    normed: OnRows
    rows_at_once: int

    def read(self, rows: torch.Tensor, readouts: Sequence[Readout]) -> list[RowOutput]:
        """The readouts' outputs, row after row [sum of outputs, hidden]; one RowOutput each.

        Raises LocalProtocolError where rows and readouts do not go together.
        """
        ends = list(accumulate(readout.outputs for readout in readouts))
        if rows.shape[0] != (ends[-1] if ends else 0):
            raise LocalProtocolError(f"{rows.shape[0]} rows came for {ends[-1] if ends else 0} outputs.")
        drawn = self._drawn(rows, list(_places(ends, readouts)))
        outputs = [_joined(islice(drawn, len(readout.draws))) for readout in readouts]
        for place, (end, readout) in enumerate(zip(ends, readouts, strict=True)):
            if readout.targets or readout.pooled:
                outputs[place] = self._with_prompt(outputs[place], rows[end - readout.outputs : end], readout)
        return outputs

    def _drawn(self, rows: torch.Tensor, places: Sequence[tuple[int, Draw]]) -> Iterator[Drawn]:
        """The drawn tokens, and their scores where they are wanted, in the order of `places` (row, draw)."""
        if len(places) < rows.shape[0]:
            rows = rows[[row for row, _ in places]]
        for first in range(0, len(places), self.rows_at_once):
            some = slice(first, first + self.rows_at_once)
            yield from _draw(self.logits(rows[some]), [draw for _, draw in places[some]])

    def _with_prompt(self, drawn: RowOutput, rows: torch.Tensor, readout: Readout) -> RowOutput:
        """What was drawn, and what else is wanted of one step row's outputs."""
        pooled = self.normed(rows).float().sum(0).tolist() if readout.pooled else ()
        return replace(drawn, prompt_scores=tuple(self._scores(rows, readout)), pooled=tuple(pooled))

    def _scores(self, rows: torch.Tensor, readout: Readout) -> Iterator[TokenScore]:
        for first in range(0, len(readout.targets), self.rows_at_once):
            targets = readout.targets[first : first + self.rows_at_once]
            logprobs = torch.log_softmax(self.logits(rows[first : first + len(targets)]), -1)
            yield from score_tokens(logprobs, targets, [readout.top_logprobs] * len(targets))


def _places(ends: Sequence[int], readouts: Sequence[Readout]) -> Iterator[tuple[int, Draw]]:
    """Each draw with the row that it is made from: the last rows of its readout, which ends before row `end`."""
    for end, readout in zip(ends, readouts, strict=True):
        yield from enumerate(readout.draws, start=end - len(readout.draws))


def _joined(drawn: Iterable[Drawn]) -> RowOutput:
    """What was drawn for one readout."""
    pairs = list(drawn)
    return RowOutput(tuple(token for token, _ in pairs), tuple(score for _, score in pairs if score is not None))


def _draw(logits: torch.Tensor, draws: Sequence[Draw]) -> list[Drawn]:
    tops = {row: top for row, draw in enumerate(draws) if (top := draw.sampling.top_logprobs) is not None}
    # Before the draws change the logits: a score is of what the model says, not of what was asked of it.
    logprobs = torch.log_softmax(logits[list(tops)], -1) if tops else None
    tokens = choose_tokens(logits, draws)
    if logprobs is None:
        return [(token, None) for token in tokens]
    scores = score_tokens(logprobs, [tokens[row] for row in tops], list(tops.values()))
    scored = dict(zip(tops, scores, strict=True))
    return [(token, scored.get(row)) for row, token in enumerate(tokens)]
