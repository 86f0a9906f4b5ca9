"""How many guessed tokens ride in a step, to be verified in one trip (speculative decoding, Leviathan et al. 2023).

A guess costs the time of one more token in the step, whether it is right or not; it is drafted while what it can be
expected to yield is worth that. So drafting is off by itself where guesses fail, where steps are full of other work,
and where more tokens take as much longer. Pure.
"""

from __future__ import annotations

from vramancer_cli.scheduling.sequence import Sequence
from vramancer_cli.scheduling.step_cost import StepCost
from vramancer_cli.settings import MOST_DRAFTED


class Load:
    """A step while it is put together: its `tokens`, and how many of what it yields can be `expected` to stay."""

    def __init__(self, tokens: int, expected: float) -> None:
        self.tokens = tokens
        self.expected = expected

    def add(self, chance: float) -> None:
        self.tokens += 1
        self.expected += chance


class Drafting:
    """`draft`: always so many tokens, where there is anything to guess; None: as many as pay."""

    def __init__(self, draft: int | None) -> None:
        self.cost = StepCost()
        self._always = draft is not None
        self._most = MOST_DRAFTED if draft is None else min(draft, MOST_DRAFTED)

    def draft(self, sequence: Sequence, room: int, load: Load) -> tuple[int, ...]:
        """At most `room` guesses at what follows the sequence's tokens, added to `load`."""
        guesses = sequence.guesses
        guesses.read(sequence.tokens(guesses.read_tokens, sequence.token_count))
        drafted: list[int] = []
        for guess, _ in zip(guesses.ahead(), range(min(room, self._most)), strict=False):
            if not self._always and not self.cost.pays(guess.chance, load.expected, load.tokens):
                break
            load.add(guess.chance)
            drafted.append(guess.token)
        return tuple(drafted)
