"""Every live sequence's block table on one stage, learnt from steps alone: whose token lies where.

What a step says is checked against what earlier steps said; a step that contradicts them changes nothing.
Must never decide which block a sequence gets, and never touch the memory. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from transport.errors import RemoteProtocolError
from transport.messages import Step, StepRow


@dataclass(frozen=True, slots=True)
class BlockTable:
    """A sequence's blocks in token order, how many tokens have been written into them, and its state slot."""

    blocks: tuple[int, ...]
    tokens: int
    consecutive: bool
    state: int | None


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A step's row with the whole table that it leads to: new tokens at positions [start, end).

    `state`: the slot of the sequence's recurrent state, empty at `start` 0; None for a model that keeps none.
    """

    start: int
    end: int
    blocks: tuple[int, ...]
    consecutive: bool
    outputs: int
    state: int | None = None


class BlockTables:
    """The tables of `block_count` blocks, and of `state_slots` recurrent states where the model keeps them."""

    def __init__(self, block_count: int, block_tokens: int, context_tokens: int, state_slots: int = 0) -> None:
        self._block_count = block_count
        self._block_tokens = block_tokens
        self._context_tokens = context_tokens
        self._state_slots = state_slots
        self._tables: dict[int, BlockTable] = {}

    def __len__(self) -> int:
        return len(self._tables)

    def apply(self, step: Step) -> list[PlacedRow]:
        """Drop what ended, then place each row. Nothing changes when RemoteProtocolError is raised."""
        kept = {sequence: table for sequence, table in self._tables.items() if sequence not in step.ended}
        seen: set[int] = set()
        written: set[int] = set()
        placed: list[PlacedRow] = []
        for row in step.rows:
            _refuse(row.sequence in seen, row, "stands twice in one step")
            seen.add(row.sequence)
            self._check_numbers(row)
            table = self._extended(row, kept.get(row.sequence))
            self._claim(row, table, written)
            self._claim_state(row, table, kept)
            kept[row.sequence] = table
            placed.append(PlacedRow(row.start, table.tokens, table.blocks, table.consecutive, row.outputs, table.state))
        self._tables = kept
        return placed

    def _check_numbers(self, row: StepRow) -> None:
        end = row.start + row.count
        _refuse(row.count < 1 or row.start < 0, row, f"adds {row.count} tokens at {row.start}")
        _refuse(not 0 <= row.outputs <= row.count, row, f"wants {row.outputs} outputs of {row.count} tokens")
        _refuse(end > self._context_tokens, row, f"grows to {end} tokens, over {self._context_tokens}")
        groups, due = (len(row.first_block), len(row.blocks)), 2 if self._state_slots else 1
        _refuse(groups != (due, due), row, f"names {groups} cache groups instead of {due}")

    def _extended(self, row: StepRow, old: BlockTable | None) -> BlockTable:
        """The table after `row`; `old` is None for a sequence that this stage does not know."""
        end = row.start + row.count
        first, given = row.first_block[0], row.blocks[0]
        known_tokens = old.tokens if old else 0
        replaced = bool(given) and first == 0
        gap = row.start > known_tokens if replaced else row.start != known_tokens
        _refuse(gap, row, f"starts at {row.start}, but {known_tokens} tokens are here")
        blocks, consecutive = (old.blocks, old.consecutive) if old else ((), True)
        if given:
            blocks = self._with_given(row, () if replaced else blocks)
            consecutive = blocks == tuple(range(blocks[0], blocks[0] + len(blocks)))
        _refuse(len(blocks) * self._block_tokens < end, row, f"has {len(blocks)} blocks, too few for {end} tokens")
        return BlockTable(blocks, end, consecutive, self._state_after(row, old.state if old else None))

    def _with_given(self, row: StepRow, blocks: tuple[int, ...]) -> tuple[int, ...]:
        first, given = row.first_block[0], row.blocks[0]
        _refuse(first != len(blocks), row, f"gets blocks at {first}, but its table has {len(blocks)}")
        unknown = [block for block in given if not 0 <= block < self._block_count]
        _refuse(bool(unknown), row, f"gets a block that does not exist: {unknown[:1]} of {self._block_count}")
        extended = blocks + given
        _refuse(len(set(extended)) != len(extended), row, "has the same block twice in its table")
        return extended

    def _state_after(self, row: StepRow, old: int | None) -> int | None:
        """The state slot after `row`: as it was, or given anew to a sequence that begins."""
        if not self._state_slots:
            return None
        first, given = row.first_block[1], row.blocks[1]
        table = ((old,) if old is not None and first == 1 else ()) + given
        _refuse(first != len(table) - len(given) or len(table) != 1, row, f"gets state slots {given} at {first}")
        _refuse(not 0 <= table[0] < self._state_slots, row, f"gets state slot {table[0]} of {self._state_slots}")
        moved = row.start > 0 and table[0] != old
        _refuse(moved, row, f"starts at {row.start} with another state than it had")
        return table[0]

    def _claim(self, row: StepRow, table: BlockTable, written: set[int]) -> None:
        """No two rows of a step may write into one block."""
        mine = table.blocks[row.start // self._block_tokens : (table.tokens - 1) // self._block_tokens + 1]
        _refuse(not written.isdisjoint(mine), row, "writes into another row's block")
        written.update(mine)

    def _claim_state(self, row: StepRow, table: BlockTable, kept: dict[int, BlockTable]) -> None:
        """A slot that was just given is nobody else's."""
        if table.state is not None and row.blocks[1]:
            owners = [sequence for sequence, other in kept.items() if other.state == table.state]
            _refuse(bool(set(owners) - {row.sequence}), row, "gets another sequence's state slot")


def _refuse(wrong: bool, row: StepRow, why: str) -> None:
    if wrong:
        raise RemoteProtocolError(f"The step contradicts the block tables: sequence {row.sequence} {why}.")
