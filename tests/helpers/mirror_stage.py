"""A stage and a model for scheduler tests: real block tables and slots, tokens instead of tensors.

A MirrorStage learns block tables from Steps alone, as a real stage does, and keeps the token of each slot. The model's
next token is a hash of all tokens that the sequence's slots hold, so that any wrong slot shows in the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from transport.messages import Step, StepRow
from vramancer_cli.models.sampling import Draw

VOCABULARY = 40


def next_token(history: tuple[int, ...], draw: Draw) -> int:
    return hash((history, draw.sampling.seed, draw.index)) % VOCABULARY


@dataclass
class Table:
    blocks: list[int] = field(default_factory=list)
    tokens: int = 0


class MirrorStage:
    """Executes steps in order and asserts everything that a stage relies on."""

    def __init__(self, block_count: int, block_tokens: int) -> None:
        self.block_count = block_count
        self.block_tokens = block_tokens
        self.tables: dict[int, Table] = {}
        self._slots: list[int] = [-1] * (block_count * block_tokens)
        self._next_number = 0

    def execute(self, step: Step, token_ids: Sequence[int]) -> list[tuple[int, ...]]:
        """The whole history of each sampled row, read back from the slots."""
        assert step.number == self._next_number, "steps came out of order or with a gap"
        self._next_number += 1
        assert len(token_ids) == step.token_count
        assert len({row.sequence for row in step.rows}) == len(step.rows), "a sequence has two rows in one step"
        for sequence in step.ended:
            assert self.tables.pop(sequence, None) is not None, f"the end of unknown sequence {sequence} was announced"
        rest = list(token_ids)
        for row in step.rows:
            self._place(row)
            self._write(row, rest[: row.count])
            del rest[: row.count]
        self._check_owners()
        return [self._history(row) for row in step.rows if row.outputs]

    def _place(self, row: StepRow) -> None:
        (first,), (blocks,) = row.first_block, row.blocks
        if first == 0:
            assert row.start == 0, "a whole new table begins at token 0"
            assert row.sequence not in self.tables, "the old table was not ended"
            self.tables[row.sequence] = Table()
        table = self.tables[row.sequence]
        assert first == len(table.blocks), "new blocks leave a gap in the table"
        assert row.start == table.tokens, "new tokens leave a gap in the cache"
        table.blocks.extend(blocks)
        table.tokens += row.count
        assert row.count > 0
        assert table.tokens <= len(table.blocks) * self.block_tokens, "the table is too short"

    def _write(self, row: StepRow, tokens: list[int]) -> None:
        for position, token in enumerate(tokens, row.start):
            self._slots[self._slot(row.sequence, position)] = token

    def _history(self, row: StepRow) -> tuple[int, ...]:
        return tuple(self._slots[self._slot(row.sequence, position)] for position in range(row.start + row.count))

    def _slot(self, sequence: int, position: int) -> int:
        return self.tables[sequence].blocks[position // self.block_tokens] * self.block_tokens + (
            position % self.block_tokens
        )

    def _check_owners(self) -> None:
        owned = [block for table in self.tables.values() for block in table.blocks]
        assert len(owned) == len(set(owned)), "two live sequences own one block"
        assert all(0 <= block < self.block_count for block in owned)
