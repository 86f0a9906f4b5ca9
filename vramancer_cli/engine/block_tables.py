"""Every live sequence's block table on one stage, learnt from steps alone: whose token lies where.

What a step says is checked against what earlier steps said; a step that contradicts them changes nothing.
Must never decide which block a sequence gets, and never touch the memory. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transport.errors import RemoteProtocolError
from transport.messages import BlockCopy, Step, StepRow
from vramancer_cli.engine.block_ledger import BlockLedger
from vramancer_cli.errors import IntegrityError


@dataclass(frozen=True, slots=True)
class BlockTable:
    """A sequence's blocks in token order, how many tokens have been written into them, and its state slot.

    `certain`: so many of the tokens stay. Those behind them may have been drafted wrongly, and the next row takes them
    back: all but the first of the last row's tokens whose outputs were wanted.
    """

    blocks: tuple[int, ...]
    tokens: int
    consecutive: bool
    state: int | None
    certain: int


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
    """The tables of `block_count` blocks, and of `state_slots` recurrent states where the model keeps them.

    Several sequences may have a block in their tables; only one that nobody else has may be written. A sequence that
    is new here may begin behind its first token, where earlier steps wrote what lies before.
    """

    def __init__(self, block_count: int, block_tokens: int, context_tokens: int, state_slots: int = 0) -> None:
        self._block_tokens = block_tokens
        self._context_tokens = context_tokens
        self._state_slots = state_slots
        self._tables: dict[int, BlockTable] = {}
        self._blocks = BlockLedger(block_count)

    def __len__(self) -> int:
        return len(self._tables)

    def apply(self, step: Step) -> list[PlacedRow]:
        """Drop what ended, note the copies, then place each row. Nothing changes when RemoteProtocolError is raised."""
        self._blocks.forget_changes()
        kept = dict(self._tables)
        for sequence in step.ended:
            if table := kept.pop(sequence, None):
                self._blocks.let_go(table.blocks)
        self._note_copies(step.copies)
        seen: set[int] = set()
        placed: list[PlacedRow] = []
        for row in step.rows:
            _refuse(row.sequence in seen, row, "stands twice in one step")
            seen.add(row.sequence)
            table = kept[row.sequence] = self._place(row, kept)
            placed.append(PlacedRow(row.start, table.tokens, table.blocks, table.consecutive, row.outputs, table.state))
        self._tables = kept
        self._blocks.keep_changes()
        return placed

    def check_integrity(self) -> None:
        """Raises IntegrityError unless the blocks in use are exactly those of the tables, and hold their tokens."""
        self._blocks.check_integrity(table.blocks for table in self._tables.values())
        for sequence, table in self._tables.items():
            if self._tokens_here(table.blocks, table.tokens) < table.tokens:
                raise IntegrityError(f"The blocks of sequence {sequence} do not hold its {table.tokens} tokens.")
        states = [table.state for table in self._tables.values() if table.state is not None]
        if len(set(states)) != len(states):
            raise IntegrityError("Two sequences have one recurrent state.")

    def _note_copies(self, copies: tuple[BlockCopy, ...]) -> None:
        """Each target is free, and nobody's source."""
        sources = {copy.source for copy in copies}
        targets: set[int] = set()
        for copy in copies:
            exists = copy.group == 0 and self._blocks.exists(copy.source) and self._blocks.exists(copy.target)
            free = exists and not self._blocks.holders(copy.target)
            clash = copy.target in targets or copy.target in sources
            if not free or clash or not self._blocks.written_tokens(copy.source):
                raise RemoteProtocolError(f"The step copies what cannot be copied: {copy}.")
            targets.add(copy.target)
            self._blocks.write(copy.target, self._blocks.written_tokens(copy.source))

    def _place(self, row: StepRow, tables: Mapping[int, BlockTable]) -> BlockTable:
        """The table after `row`, with its blocks held and written."""
        self._check_numbers(row)
        old = tables.get(row.sequence)
        if old is not None and row.blocks[0] and row.first_block[0] == 0:
            self._blocks.let_go(old.blocks)
            table = self._extended(row, ())
        elif old is not None:
            self._take_back(row, old)
            table = self._extended(row, old.blocks) if row.blocks[0] else old.blocks
        else:
            table = self._extended(row, ())
        self._write(row, table)
        consecutive = old.consecutive if old and table is old.blocks else _are_consecutive(table)
        end = row.start + row.count
        return BlockTable(table, end, consecutive, self._state_after(row, tables), end - max(0, row.outputs - 1))

    def _take_back(self, row: StepRow, old: BlockTable) -> None:
        """Forget the tokens from the row's start on; only such as may have been drafted wrongly.

        Never of a model with recurrent states, which stand after the last token only.
        """
        certain = old.tokens if self._state_slots else old.certain
        _refuse(not certain <= row.start <= old.tokens, row, f"starts at {row.start}, but {old.tokens} tokens are here")
        size = self._block_tokens
        for index in range(row.start // size, -(-old.tokens // size)):
            _refuse(self._blocks.holders(old.blocks[index]) != 1, row, "takes back what another sequence reads")
            self._blocks.write(old.blocks[index], max(0, row.start - index * size))

    def _check_numbers(self, row: StepRow) -> None:
        end = row.start + row.count
        _refuse(row.count < 1 or row.start < 0, row, f"adds {row.count} tokens at {row.start}")
        _refuse(not 0 <= row.outputs <= row.count, row, f"wants {row.outputs} outputs of {row.count} tokens")
        _refuse(end > self._context_tokens, row, f"grows to {end} tokens, over {self._context_tokens}")
        groups, due = (len(row.first_block), len(row.blocks)), 2 if self._state_slots else 1
        _refuse(groups != (due, due), row, f"names {groups} cache groups instead of {due}")

    def _extended(self, row: StepRow, blocks: tuple[int, ...]) -> tuple[int, ...]:
        """`blocks` and those given, which are the sequence's from now on."""
        first, given = row.first_block[0], row.blocks[0]
        _refuse(first != len(blocks), row, f"gets blocks at {first}, but its table has {len(blocks)}")
        unknown = [block for block in given if not self._blocks.exists(block)]
        _refuse(bool(unknown), row, f"gets a block that does not exist: {unknown[:1]} of {len(self._blocks)}")
        extended = blocks + given
        _refuse(len(set(extended)) != len(extended), row, "has the same block twice in its table")
        self._blocks.hold(given)
        return extended

    def _write(self, row: StepRow, table: tuple[int, ...]) -> None:
        """Refused where a token before `row` is missing, or somebody else has a block that it writes into."""
        end, size = row.start + row.count, self._block_tokens
        _refuse(len(table) * size < end, row, f"has {len(table)} blocks, too few for {end} tokens")
        if row.first_block[0] == 0:
            here = self._tokens_here(table, row.start)
            _refuse(here < row.start, row, f"starts at {row.start}, but {here} tokens are here")
        for index in range(row.start // size, (end - 1) // size + 1):
            _refuse(self._blocks.holders(table[index]) != 1, row, "writes into another sequence's block")
            self._blocks.write(table[index], min(size, end - index * size))

    def _tokens_here(self, table: tuple[int, ...], most: int) -> int:
        """How many of the first `most` tokens have been written into the blocks of `table`."""
        size = self._block_tokens
        for index, block in enumerate(table[: -(-most // size)]):
            written = self._blocks.written_tokens(block)
            if written < min(size, most - index * size):
                return index * size + written
        return most

    def _state_after(self, row: StepRow, tables: Mapping[int, BlockTable]) -> int | None:
        """The state slot after `row`: as it was, or given anew to a sequence that begins."""
        if not self._state_slots:
            return None
        before = tables.get(row.sequence)
        old = before.state if before else None
        first, given = row.first_block[1], row.blocks[1]
        table = ((old,) if old is not None and first == 1 else ()) + given
        _refuse(first != len(table) - len(given) or len(table) != 1, row, f"gets state slots {given} at {first}")
        _refuse(not 0 <= table[0] < self._state_slots, row, f"gets state slot {table[0]} of {self._state_slots}")
        moved = row.start > 0 and table[0] != old
        _refuse(moved, row, f"starts at {row.start} with another state than it had")
        owned = any(other.state == table[0] for sequence, other in tables.items() if sequence != row.sequence)
        _refuse(bool(given) and owned, row, "gets another sequence's state slot")
        return table[0]


def _are_consecutive(blocks: tuple[int, ...]) -> bool:
    return blocks == tuple(range(blocks[0], blocks[0] + len(blocks)))


def _refuse(wrong: bool, row: StepRow, why: str) -> None:
    if wrong:
        raise RemoteProtocolError(f"The step contradicts the block tables: sequence {row.sequence} {why}.")
