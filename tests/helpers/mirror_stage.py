"""A stage and a model for scheduler tests: real block tables and slots, tokens instead of tensors.

A MirrorStage learns block tables from Steps alone, as a real stage does, and keeps in each slot the token and a hash of
all tokens that it was computed behind, read from the slots before it: what attention would have seen. Every row reads
its whole sequence back; the model's next token is made of it. So any wrong slot shows, on the spot or in the answer.
In the cache groups of windows a row reads back what its tokens may see there, and what a rollback could.
"""

from __future__ import annotations

from collections.abc import Sequence

from transport.messages import Step, WindowGroup
from vramancer_cli.engine.block_tables import BlockTables, PlacedRow
from vramancer_cli.models.cache_window import ROLLBACK_TOKENS
from vramancer_cli.models.sampling import Draw

VOCABULARY = 40

Slot = tuple[int, int]
"""A token, and a hash of it and of all before it."""


def next_token(history: tuple[int, ...], draw: Draw) -> int:
    """Mostly what followed the last token before, so that answers can be guessed; else anything."""
    anything = hash((history, draw.sampling.seed, draw.index))
    return (3 * history[-1] + 1) % 7 if anything % 5 else anything % VOCABULARY


class MirrorStage:
    """Executes steps in order and asserts everything that a stage relies on; BlockTables refuses the rest."""

    def __init__(
        self, block_count: int, block_tokens: int, state_slots: int = 0, windows: tuple[WindowGroup, ...] = ()
    ) -> None:
        self.block_tokens = block_tokens
        self.windows = windows
        self.tables = BlockTables(block_count, block_tokens, block_count * block_tokens, state_slots, windows)
        self.left_behind = 0
        self.known: set[int] = set()
        self._states: list[tuple[int, ...]] = [()] * state_slots
        # By cache group.
        self._slots: list[list[Slot]] = [
            [(-1, -1)] * (count * block_tokens) for count in (block_count, *(group.block_count for group in windows))
        ]
        self._next_number = 0

    def execute(self, step: Step, token_ids: Sequence[int]) -> list[tuple[int, ...]]:
        """The whole history of each sampled row, read back from the slots."""
        assert step.number == self._next_number, "steps came out of order or with a gap"
        self._next_number += 1
        assert len(token_ids) == step.token_count
        assert self.known.issuperset(step.ended), "the end of an unknown sequence was announced"
        placed = self.tables.apply(step)
        if step.number % 4 == 0:
            self.tables.check_integrity()
        self.known = (self.known - set(step.ended)) | {row.sequence for row in step.rows}
        assert len(self.tables) == len(self.known)
        self._copy(step)
        rest = list(token_ids)
        for row in placed:
            self._write(row, rest)
        histories = [self._history(row) for row in placed]
        self._advance_states(placed, histories)
        return [history for history, row in zip(histories, step.rows, strict=True) if row.outputs]

    def _copy(self, step: Step) -> None:
        size = self.block_tokens
        for copy in step.copies:
            slots = self._slots[copy.group]
            slots[copy.target * size : (copy.target + 1) * size] = slots[copy.source * size : (copy.source + 1) * size]

    def _write(self, row: PlacedRow, rest: list[int]) -> None:
        before = self._slots[0][self._slot(row, row.start - 1)][1] if row.start else 0
        for position in range(row.start, row.end):
            token = rest.pop(0)
            before = hash((before, token))
            for group, slots in enumerate(self._slots):
                slots[self._slot(row, position, group)] = (token, before)

    def _history(self, row: PlacedRow) -> tuple[int, ...]:
        tokens: list[int] = []
        before = 0
        for position in range(row.end):
            token, behind = slot = self._slots[0][self._slot(row, position)]
            before = hash((before, token))
            assert behind == before, f"token {position} was computed behind other tokens than stand before it"
            self._check_windows(row, position, slot)
            tokens.append(token)
        self.left_behind += sum(table.first for table in row.windows)
        return tuple(tokens)

    def _check_windows(self, row: PlacedRow, position: int, slot: Slot) -> None:
        """What was left behind would be another one's by now; a sequence that began here cannot go back behind it."""
        for group, window in enumerate(self.windows, start=1):
            held = position >= row.groups[group].first * self.block_tokens
            assert held or position <= row.start - window.window_tokens, "a window sees what was left behind"
            rolled_back = position > row.start - window.window_tokens - ROLLBACK_TOKENS
            if held and (rolled_back or position >= row.start):
                assert self._slots[group][self._slot(row, position, group)] == slot, "a window sees another token"

    def _slot(self, row: PlacedRow, position: int, group: int = 0) -> int:
        table = row.groups[group]
        block = table.blocks[position // self.block_tokens - table.first]
        return block * self.block_tokens + position % self.block_tokens

    def _advance_states(self, placed: Sequence[PlacedRow], histories: Sequence[tuple[int, ...]]) -> None:
        """A recurrent state holds all tokens so far, in order: nothing else tells a wrong slot apart."""
        for row, history in zip(placed, histories, strict=True):
            if row.state is not None:
                before = self._states[row.state] if row.start else ()
                self._states[row.state] = before + history[row.start :]
                assert self._states[row.state] == history, "a state holds other tokens than its sequence"
