"""CacheGroup: a window gives back what it has left behind, and says behind how much a sequence may begin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramancer_cli.errors import IntegrityError
from vramancer_cli.models.cache_window import most_held_blocks
from vramancer_cli.scheduling.cache_group import NOTHING, CacheGroup, Found, HeldBlocks

WINDOW = 5
SIZE = 4


def window_group(more_blocks: int = 10) -> CacheGroup:
    """Windows of 5 tokens in steps of 8: a sequence holds 8 blocks of 4 at most."""
    return CacheGroup(8 + more_blocks, SIZE, window_tokens=WINDOW, max_step_tokens=8)


def digest(number: int) -> bytes:
    return bytes([number])


CHAIN = [digest(number) for number in range(12)]


def run(group: CacheGroup, tokens: int, held: HeldBlocks | None = None, start: int = 0) -> HeldBlocks:
    """A sequence of `tokens` tokens in steps of 8, each full block kept."""
    held = held or group.begin(NOTHING, tokens)
    while start < tokens:
        count = min(8, tokens - start)
        assert group.can_grow(held, start, count)
        group.grow(held, start, count)
        start += count
        for number in range(held.first, start // SIZE):
            group.pool.keep(held.between(number, number + 1)[0], CHAIN[number])
    return held


def test_a_window_holds_what_its_next_tokens_may_see_and_what_a_rollback_needs() -> None:
    group = window_group()
    held = run(group, 48)
    assert (held.first, held.end) == (5, 12), "the last step began at 40: 16 to roll back, 4 to see, from 20 on"
    group.check_integrity([(1, 48, 48, held)])
    group.pool.give_back(held.blocks)
    group.check_integrity([])


def test_what_the_stages_do_not_know_is_announced_once() -> None:
    held = HeldBlocks([7, 8, 9], first=3)
    assert held.announce() == (3, (7, 8, 9))
    held.blocks.append(1)
    assert held.drop_before(5) == (7, 8)
    assert held.announce() == (6, (1,))
    assert held.announce() == (7, ())
    assert held.drop_before(2) == ()


def test_a_prefix_is_usable_as_far_as_its_last_window_is_kept() -> None:
    group = window_group()
    held = run(group, 48)
    assert group.usable_end(CHAIN, 12) == 12
    group.pool.give_back(held.blocks)
    others = group.pool.take(len(CHAIN) - 1, after=None)
    assert group.usable_end(CHAIN, 12) == 12, "what was free went first"
    group.pool.give_back(others)


@given(st.sets(st.integers(0, 11)), st.integers(0, 12), st.one_of(st.none(), st.integers(1, 30)))
def test_the_usable_end_is_the_most_that_has_all_it_reads(kept: set[int], most: int, window: int | None) -> None:
    blocks = 12 if window is None else 12 + most_held_blocks(window, 8, SIZE)
    group = CacheGroup(blocks, SIZE, window_tokens=window, max_step_tokens=8)
    for number, block in zip(sorted(kept), group.pool.take(len(kept)), strict=True):
        group.pool.keep(block, CHAIN[number])

    def reads(end: int) -> range:
        first = 0 if window is None else max(0, end * SIZE - window + 1) // SIZE
        return range(first, end)

    usable = [end for end in range(most + 1) if all(number in kept for number in reads(end))]
    assert group.usable_end(CHAIN, most) == max(usable)
    assert len(group.kept(CHAIN, max(usable)).blocks) == len(reads(max(usable)))


def test_a_fork_shares_the_window_and_nothing_once_it_has_moved_on() -> None:
    group = window_group()
    held = run(group, 21)
    assert group.forked(held, 21) == Found(4, held.between(4, 5), held.between(5, 6)[0])
    assert group.forked(held, 20) == Found(4, held.between(4, 5))
    run(group, 48, held, 21)
    assert group.forked(held, 21) is None


def test_blocks_that_go_back_count_as_free_unless_another_has_them() -> None:
    group = window_group(0)
    held = run(group, 40)
    taken = group.pool.take(group.pool.free_count)
    assert (held.first, held.end) == (3, 10)
    assert group.can_grow(held, 40, 8)
    assert not group.can_grow(held, 40, 12)
    group.pool.share(held.between(4, 5))
    assert group.can_grow(held, 40, 4)
    assert not group.can_grow(held, 40, 8)
    group.pool.give_back(taken)


def test_room_is_asked_for_as_much_as_a_window_ever_holds() -> None:
    group = window_group(2)
    assert group.has_room(NOTHING, 1000, 2)
    assert not group.has_room(NOTHING, 1000, 3)
    assert group.has_room(NOTHING, 28, 3)


def test_a_group_that_does_not_hold_one_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="too few for a window of 5 tokens"):
        CacheGroup(7, SIZE, window_tokens=WINDOW, max_step_tokens=8)


@pytest.mark.parametrize(
    ("first", "cached", "why"), [(6, 24, "do not match"), (0, 25, "do not match"), (0, 23, "others may read")]
)
def test_integrity_finds_a_window_that_is_wrong(first: int, cached: int, why: str) -> None:
    group = window_group()
    held = run(group, 24)
    held.blocks, held.first = held.blocks[first:], first
    with pytest.raises(IntegrityError, match=why):
        group.check_integrity([(1, cached, cached, held), (2, 0, 0, HeldBlocks(list(group.pool.find(CHAIN[:first]))))])


def test_integrity_finds_a_window_that_holds_too_much() -> None:
    group = window_group()
    held = group.begin(NOTHING, 48)
    held.blocks.extend(group.pool.take(9))
    with pytest.raises(IntegrityError, match="holds 9 blocks of a window"):
        group.check_integrity([(1, 0, 0, held)])
