"""What a stage knows of each block: how many of its tokens have been written, and how many block tables hold it.

Changes are made one by one and then kept or forgotten together. Must never know a sequence. No torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from vramancer_cli.errors import IntegrityError


class BlockLedger:
    """`block_count` blocks, unwritten and held by nobody at first. Reads see the changes not yet kept."""

    def __init__(self, block_count: int) -> None:
        self._written = [0] * block_count
        self._holders = [0] * block_count
        self._new_written: dict[int, int] = {}
        self._new_holders: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._written)

    def exists(self, block: int) -> bool:
        return 0 <= block < len(self._written)

    def written_tokens(self, block: int) -> int:
        """The first so many of its tokens are there, by whomever."""
        return self._new_written.get(block, self._written[block])

    def holders(self, block: int) -> int:
        return self._new_holders.get(block, self._holders[block])

    def write(self, block: int, tokens: int) -> None:
        """From now on it holds its first `tokens` tokens; what was behind them belonged to something else."""
        self._new_written[block] = tokens

    def hold(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._new_holders[block] = self.holders(block) + 1

    def let_go(self, blocks: Iterable[int]) -> None:
        for block in blocks:
            self._new_holders[block] = self.holders(block) - 1

    def keep_changes(self) -> None:
        for block, tokens in self._new_written.items():
            self._written[block] = tokens
        for block, count in self._new_holders.items():
            self._holders[block] = count
        self.forget_changes()

    def forget_changes(self) -> None:
        self._new_written.clear()
        self._new_holders.clear()

    def check_integrity(self, tables: Iterable[Iterable[int]]) -> None:
        """Raises IntegrityError unless each block is held by exactly those tables that have it."""
        expected = Counter(block for table in tables for block in table)
        for block, count in enumerate(self._holders):
            if count != expected[block]:
                raise IntegrityError(f"Block {block} has {count} holders, and is in {expected[block]} tables.")
