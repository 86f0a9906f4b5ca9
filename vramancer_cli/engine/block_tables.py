"""Every live sequence's block tables on one stage, learnt from steps alone: whose token lies where, by cache group.

What a step says is checked against what earlier steps said; a step that contradicts them changes nothing.
Must never decide which block a sequence gets, and never touch the memory. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transport.errors import RemoteProtocolError
from transport.messages import Step, StepRow, WindowGroup
from vramancer_cli.engine.group_blocks import GroupBlocks, HeldTable, refuse
from vramancer_cli.errors import IntegrityError


@dataclass(frozen=True, slots=True)
class BlockTable:
    """A sequence's blocks in each group, how many tokens have been written into them, and its state slot.

    `certain`: so many of the tokens stay. Those behind them may have been drafted wrongly, and the next row takes them
    back: all but the first of the last row's tokens whose outputs were wanted.
    """

    groups: tuple[HeldTable, ...]
    tokens: int
    state: int | None
    certain: int


@dataclass(frozen=True, slots=True)
class PlacedRow:
    """A step's row with the whole tables that it leads to: new tokens at positions [start, end).

    `blocks` are those of group 0, from the first token on; `windows` the tables of the groups behind it. `state`: the
    slot of the sequence's recurrent state, empty at `start` 0; None for a model that keeps none.
    """

    start: int
    end: int
    blocks: tuple[int, ...]
    consecutive: bool
    outputs: int
    state: int | None = None
    windows: tuple[HeldTable, ...] = ()

    @property
    def groups(self) -> tuple[HeldTable, ...]:
        return HeldTable(self.blocks, self.consecutive), *self.windows


class BlockTables:
    """The tables of `block_count` blocks and of the groups of `windows`, and of `state_slots` recurrent states where
    the model keeps them.

    A sequence that is new here may begin behind its first token, where earlier steps wrote what lies before.
    """

    def __init__(
        self,
        block_count: int,
        block_tokens: int,
        context_tokens: int,
        state_slots: int = 0,
        windows: Sequence[WindowGroup] = (),
    ) -> None:
        self._context_tokens = context_tokens
        self._state_slots = state_slots
        self._tables: dict[int, BlockTable] = {}
        self._groups = (
            GroupBlocks(0, block_count, block_tokens),
            *(
                GroupBlocks(number, window.block_count, block_tokens, window.window_tokens)
                for number, window in enumerate(windows, start=1)
            ),
        )

    def __len__(self) -> int:
        return len(self._tables)

    def apply(self, step: Step) -> list[PlacedRow]:
        """Drop what ended and what windows have left behind, note the copies, then place each row.

        Nothing changes when RemoteProtocolError is raised.
        """
        for group in self._groups:
            group.ledger.forget_changes()
        tables = dict(self._tables)
        for sequence in step.ended:
            if table := tables.pop(sequence, None):
                self._let_go(table)
        before = self._trimmed(step.rows, tables)
        self._note_copies(step)
        placed = [self._place(row, tables, before.get(row.sequence)) for row in step.rows]
        self._tables = tables
        for group in self._groups:
            group.ledger.keep_changes()
        return placed

    def check_integrity(self) -> None:
        """Raises IntegrityError unless the blocks in use are exactly those of the tables, and hold their tokens."""
        for number, group in enumerate(self._groups):
            group.ledger.check_integrity(table.groups[number].blocks for table in self._tables.values())
            for sequence, table in self._tables.items():
                if group.tokens_here(table.groups[number], table.tokens) < table.tokens:
                    raise IntegrityError(f"The blocks of sequence {sequence} do not hold its {table.tokens} tokens.")
        states = [table.state for table in self._tables.values() if table.state is not None]
        if len(set(states)) != len(states):
            raise IntegrityError("Two sequences have one recurrent state.")

    def _let_go(self, table: BlockTable) -> None:
        for group, held in zip(self._groups, table.groups, strict=True):
            group.ledger.let_go(held.blocks)

    def _note_copies(self, step: Step) -> None:
        for copy in step.copies:
            if copy.group >= len(self._groups):
                raise RemoteProtocolError(f"The step copies what cannot be copied: {copy}.")
        for group in self._groups:
            group.note_copies(step.copies)

    def _trimmed(self, rows: Sequence[StepRow], tables: Mapping[int, BlockTable]) -> dict[int, BlockTable]:
        """The tables that rows go on from, without what their windows have left behind: before anybody gets that.

        A row that replaces its tables goes on from none.
        """
        going_on: dict[int, BlockTable] = {}
        seen: set[int] = set()
        for row in rows:
            refuse(row.sequence in seen, row, "stands twice in one step")
            seen.add(row.sequence)
            self._check_numbers(row)
            old = tables.get(row.sequence)
            if old is None:
                continue
            if row.blocks[0] and row.first_block[0] == 0:
                self._let_go(old)
                continue
            self._take_back(row, old)
            pairs = zip(self._groups, old.groups, strict=True)
            trimmed = tuple(group.trim(held, row.start) for group, held in pairs)
            going_on[row.sequence] = BlockTable(trimmed, row.start, old.state, row.start)
        return going_on

    def _take_back(self, row: StepRow, old: BlockTable) -> None:
        """Forget the tokens from the row's start on; only such as may have been drafted wrongly.

        Never of a model with recurrent states, which stand after the last token only.
        """
        certain = old.tokens if self._state_slots else old.certain
        refuse(not certain <= row.start <= old.tokens, row, f"starts at {row.start}, but {old.tokens} tokens are here")
        for group, held in zip(self._groups, old.groups, strict=True):
            group.take_back(row, held, old.tokens)

    def _place(self, row: StepRow, tables: dict[int, BlockTable], before: BlockTable | None) -> PlacedRow:
        """Put the table after `row` among `tables`, with its blocks held and written."""
        held = before.groups if before else (None,) * len(self._groups)
        full, *windows = (group.place(row, table) for group, table in zip(self._groups, held, strict=True))
        state, end = self._state_after(row, tables), row.start + row.count
        tables[row.sequence] = BlockTable((full, *windows), end, state, end - max(0, row.outputs - 1))
        return PlacedRow(row.start, end, full.blocks, full.consecutive, row.outputs, state, tuple(windows))

    def _check_numbers(self, row: StepRow) -> None:
        end = row.start + row.count
        refuse(row.count < 1 or row.start < 0, row, f"adds {row.count} tokens at {row.start}")
        refuse(not 0 <= row.outputs <= row.count, row, f"wants {row.outputs} outputs of {row.count} tokens")
        refuse(end > self._context_tokens, row, f"grows to {end} tokens, over {self._context_tokens}")
        groups, due = (len(row.first_block), len(row.blocks)), len(self._groups) + bool(self._state_slots)
        refuse(groups != (due, due), row, f"names {groups} cache groups instead of {due}")

    def _state_after(self, row: StepRow, tables: Mapping[int, BlockTable]) -> int | None:
        """The state slot after `row`: as it was, or given anew to a sequence that begins."""
        if not self._state_slots:
            return None
        before = tables.get(row.sequence)
        old = before.state if before else None
        first, given = row.first_block[-1], row.blocks[-1]
        table = ((old,) if old is not None and first == 1 else ()) + given
        refuse(first != len(table) - len(given) or len(table) != 1, row, f"gets state slots {given} at {first}")
        refuse(not 0 <= table[0] < self._state_slots, row, f"gets state slot {table[0]} of {self._state_slots}")
        moved = row.start > 0 and table[0] != old
        refuse(moved, row, f"starts at {row.start} with another state than it had")
        owned = any(other.state == table[0] for sequence, other in tables.items() if sequence != row.sequence)
        refuse(bool(given) and owned, row, "gets another sequence's state slot")
        return table[0]
