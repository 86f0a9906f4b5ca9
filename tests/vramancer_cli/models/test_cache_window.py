"""The rule of windows, against counting token by token."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vramancer_cli.models.cache_window import ROLLBACK_TOKENS, first_held_block, first_read_block, most_held_blocks

SIZES = st.integers(1, 40)


def seen(window_tokens: int, position: int) -> range:
    """The positions that a token sees: itself and the window's others before it."""
    return range(max(0, position - window_tokens + 1), position + 1)


@given(window=SIZES, start=st.integers(0, 200), block=st.integers(1, 20), back=st.integers(0, ROLLBACK_TOKENS))
def test_what_a_row_sees_is_held_also_after_a_rollback(window: int, start: int, block: int, back: int) -> None:
    assert first_read_block(window, start, block) == seen(window, start)[0] // block
    again = max(0, start - back)
    assert first_held_block(window, start, block) <= seen(window, again)[0] // block
    assert first_held_block(window, start, block) == seen(window, max(0, start - ROLLBACK_TOKENS))[0] // block


@given(window=SIZES, step=SIZES, block=st.integers(1, 20))
def test_a_sequence_never_holds_more_than_the_most_and_sometimes_that(window: int, step: int, block: int) -> None:
    starts = range(window + ROLLBACK_TOKENS, window + ROLLBACK_TOKENS + block)
    held = [-(-(start + step) // block) - first_held_block(window, start, block) for start in range(60)]
    at_most = [-(-(start + step) // block) - first_held_block(window, start, block) for start in starts]
    assert max(held) <= most_held_blocks(window, step, block) == max(at_most)
