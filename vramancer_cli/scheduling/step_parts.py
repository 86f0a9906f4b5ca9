"""What one step is made of and what came of it, as values: shares of sequences, what the head keeps beside, results.

Pure; who gets which share is the scheduler's business.
"""

from __future__ import annotations

from dataclasses import dataclass

from transport.messages import Step
from vramancer_cli.errors import VramancerError
from vramancer_cli.models.readout import Readout
from vramancer_cli.models.sampling import Draw
from vramancer_cli.scheduling.sequence import FinishReason, Sequence


class StepMismatchError(VramancerError):
    """The results of a step are not what was asked for."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A step, and what the head needs beside it.

    In row order: `token_ids`, one per row token; `readouts`, one per row with outputs.
    """

    step: Step
    token_ids: tuple[int, ...]
    readouts: tuple[Readout, ...]

    @property
    def draws(self) -> tuple[Draw, ...]:
        """One per token that is drawn, in row order."""
        return tuple(draw for readout in self.readouts for draw in readout.draws)

    @property
    def sampled(self) -> tuple[int, ...]:
        """The sequences that are sampled."""
        return tuple(readout.sequence for readout in self.readouts if readout.draws)


@dataclass(frozen=True, slots=True)
class Emitted:
    """What a committed step gave one sequence. A stop token is not among `token_ids`.

    `drafted`: so many tokens had been guessed beforehand; the first `right` of them were what was drawn.
    """

    sequence: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None
    drafted: int = 0
    right: int = 0


@dataclass(frozen=True, slots=True)
class Share:
    """One sequence's share of a step: `count` tokens, the last `drafted` of them guesses."""

    sequence: Sequence
    count: int
    sampled: bool
    drafted: int = 0

    @property
    def draws(self) -> int:
        return 1 + self.drafted if self.sampled else 0

    @property
    def decodes(self) -> bool:
        """Whether one token is all that it must run."""
        return self.sampled and self.count == 1 + self.drafted

    @property
    def goes_on(self) -> bool:
        """Whether it decodes behind a token of its answer, so that nothing else is wanted of that token, and of no part
        that is still on its way."""
        return self.decodes and bool(self.sequence.generated) and self.sequence.in_flight == 1


@dataclass(frozen=True, slots=True)
class Flight:
    """A step that has not come back. Its rows hold sequences, not ids: an id may be used again meanwhile."""

    step: Step
    shares: tuple[Share, ...]
    started_s: float

    @property
    def has_decodes(self) -> bool:
        return any(share.decodes for share in self.shares)
