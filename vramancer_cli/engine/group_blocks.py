"""One cache group on one stage, learnt from steps alone: each sequence's blocks there, and what has been written.

What contradicts earlier steps is refused before anything is kept. Must never decide which block a sequence gets, and
never touch the memory. No torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from transport.errors import RemoteProtocolError
from transport.messages import BlockCopy, StepRow
from vramancer_cli.engine.block_ledger import BlockLedger
from vramancer_cli.models.cache_window import first_held_block, first_read_block


@dataclass(frozen=True, slots=True)
class HeldTable:
    """A sequence's blocks in token order: its blocks number `first` to `end` - 1."""

    blocks: tuple[int, ...]
    consecutive: bool
    first: int = 0

    @property
    def end(self) -> int:
        return self.first + len(self.blocks)


class GroupBlocks:
    """Group `number` of a step: `block_count` blocks, for layers that look back `window_tokens` (None: to the start).

    Several sequences may have a block in their tables; only one that nobody else has may be written.
    """

    def __init__(self, number: int, block_count: int, block_tokens: int, window_tokens: int | None = None) -> None:
        self.ledger = BlockLedger(block_count)
        self._number = number
        self._size = block_tokens
        self._window = window_tokens

    def trim(self, held: HeldTable, start: int) -> HeldTable:
        """Let go of what lies behind the window of position `start`."""
        dropped = 0 if self._window is None else first_held_block(self._window, start, self._size) - held.first
        if dropped <= 0:
            return held
        self.ledger.let_go(held.blocks[:dropped])
        kept = held.blocks[dropped:]
        return HeldTable(kept, held.consecutive or _are_consecutive(kept), held.first + dropped)

    def take_back(self, row: StepRow, held: HeldTable, tokens: int) -> None:
        """Forget what was written from the row's start up to position `tokens`. Raises RemoteProtocolError."""
        for number in range(row.start // self._size, -(-tokens // self._size)):
            block = held.blocks[number - held.first]
            refuse(self.ledger.holders(block) != 1, row, "takes back what another sequence reads")
            self.ledger.write(block, max(0, row.start - number * self._size))

    def note_copies(self, copies: tuple[BlockCopy, ...]) -> None:
        """Each target is free, and nobody's source. Raises RemoteProtocolError."""
        own = [copy for copy in copies if copy.group == self._number]
        sources = {copy.source for copy in own}
        targets: set[int] = set()
        for copy in own:
            exists = self.ledger.exists(copy.source) and self.ledger.exists(copy.target)
            free = exists and not self.ledger.holders(copy.target)
            clash = copy.target in targets or copy.target in sources
            if not free or clash or not self.ledger.written_tokens(copy.source):
                raise RemoteProtocolError(f"The step copies what cannot be copied: {copy}.")
            targets.add(copy.target)
            self.ledger.write(copy.target, self.ledger.written_tokens(copy.source))

    def place(self, row: StepRow, held: HeldTable | None) -> HeldTable:
        """The table after `row`, with its blocks held and written; `held`: as it was, None for one that begins here.

        Raises RemoteProtocolError.
        """
        first, given = row.first_block[self._number], row.blocks[self._number]
        table = held
        if table is None:
            table = self._extended(row, HeldTable((), True, first), given)
            self._check_begin(row, table)
        elif given:
            refuse(first != table.end, row, f"gets blocks at {first}, but its table has {table.end}")
            table = self._extended(row, table, given)
        self._write(row, table)
        return table

    def tokens_here(self, table: HeldTable, most: int) -> int:
        """Up to which position, at most `most`, the tokens from the table's first block on have been written."""
        for number in range(table.first, -(-most // self._size)):
            written = self.ledger.written_tokens(table.blocks[number - table.first])
            if written < min(self._size, most - number * self._size):
                return number * self._size + written
        return most

    def _extended(self, row: StepRow, table: HeldTable, given: tuple[int, ...]) -> HeldTable:
        """`table` and the blocks given, which are the sequence's from now on."""
        unknown = [block for block in given if not self.ledger.exists(block)]
        refuse(bool(unknown), row, f"gets a block that does not exist: {unknown[:1]} of {len(self.ledger)}")
        extended = table.blocks + given
        refuse(len(set(extended)) != len(extended), row, "has the same block twice in its table")
        self.ledger.hold(given)
        return HeldTable(extended, _are_consecutive(extended), table.first)

    def _check_begin(self, row: StepRow, table: HeldTable) -> None:
        """Refused where a token that `row` reads is missing."""
        due = 0 if self._window is None else first_read_block(self._window, row.start, self._size)
        refuse(table.first > due, row, f"gets blocks at {table.first}, but its table has {due}")
        enough = table.end * self._size >= row.start
        here = self.tokens_here(table, row.start) if enough else table.end * self._size
        refuse(here < row.start, row, f"starts at {row.start}, but {here} tokens are here")

    def _write(self, row: StepRow, table: HeldTable) -> None:
        """Refused where there is no block, or somebody else has a block that it writes into."""
        end, size = row.start + row.count, self._size
        refuse(table.end * size < end, row, f"has {table.end} blocks, too few for {end} tokens")
        for number in range(row.start // size, (end - 1) // size + 1):
            block = table.blocks[number - table.first]
            refuse(self.ledger.holders(block) != 1, row, "writes into another sequence's block")
            self.ledger.write(block, min(size, end - number * size))


def refuse(wrong: bool, row: StepRow, why: str) -> None:
    if wrong:
        raise RemoteProtocolError(f"The step contradicts the block tables: sequence {row.sequence} {why}.")


def _are_consecutive(blocks: tuple[int, ...]) -> bool:
    return not blocks or blocks == tuple(range(blocks[0], blocks[0] + len(blocks)))
