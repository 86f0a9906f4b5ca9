"""Which blocks a layer that looks back one window of tokens still needs: head, stages and planner go by this one rule.

Blocks are counted by position: block i of a sequence holds tokens [i * block_tokens, (i + 1) * block_tokens). Pure.
"""

from __future__ import annotations

from typing import Final

from vramancer_cli.settings import MOST_DRAFTED

ROLLBACK_TOKENS: Final = MOST_DRAFTED
"""A sequence may go back by so many tokens (drafts that were not accepted) and find all that its windows read there."""


def first_read_block(window_tokens: int, start: int, block_tokens: int) -> int:
    """The first block that tokens from `start` on read: each sees `window_tokens` tokens, itself among them."""
    return max(0, start - window_tokens + 1) // block_tokens


def first_held_block(window_tokens: int, start: int, block_tokens: int) -> int:
    """The first block that is held while tokens from position `start` on run; those before it go back."""
    return first_read_block(window_tokens, start - ROLLBACK_TOKENS, block_tokens)


def most_held_blocks(window_tokens: int, max_step_tokens: int, block_tokens: int) -> int:
    """The most that one sequence ever holds: a window, the rollback and a step's tokens, wherever a block begins."""
    tokens = window_tokens - 1 + ROLLBACK_TOKENS + max_step_tokens
    return 1 + -(-(tokens - 1) // block_tokens)
