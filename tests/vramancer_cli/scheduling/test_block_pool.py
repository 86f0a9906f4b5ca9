"""BlockPool: every block is free, kept or used, and by as many as have it; what is kept is found again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramancer_cli.errors import IntegrityError
from vramancer_cli.scheduling.block_pool import BlockPool


def is_run(blocks: tuple[int, ...]) -> bool:
    return blocks == tuple(range(blocks[0], blocks[0] + len(blocks)))


def test_blocks_for_counts_begun_blocks() -> None:
    pool = BlockPool(4, 16)
    assert [pool.blocks_for(tokens) for tokens in (0, 1, 16, 17, 64)] == [0, 1, 1, 2, 4]


def test_a_table_grows_consecutively_beside_others() -> None:
    pool = BlockPool(64, 16)
    tables = [pool.take(3) for _ in range(4)]
    for _ in range(4):
        tables = [table + pool.take(1, after=table[-1]) for table in tables]
    assert all(is_run(table) for table in tables)


def test_the_only_run_that_is_long_enough_is_found() -> None:
    pool = BlockPool(10, 16)
    everything = pool.take(10)
    pool.give_back((0, 1, 3, 4, 5, 8))
    assert pool.take(3) == (3, 4, 5)
    assert everything == tuple(range(10))


def test_without_a_run_the_pieces_are_used() -> None:
    pool = BlockPool(6, 16)
    pool.take(6)
    pool.give_back((4, 0, 2))
    assert sorted(pool.take(3)) == [0, 2, 4]
    assert pool.free_count == 0


def test_growth_falls_back_to_any_block() -> None:
    pool = BlockPool(4, 16)
    pool.take(4)
    pool.give_back([0])
    assert pool.take(1, after=2) == (0,)


def test_more_than_there_is_is_refused_and_takes_nothing() -> None:
    pool = BlockPool(4, 16)
    pool.take(2)
    with pytest.raises(ValueError, match="3 blocks were asked for, 2 are free"):
        pool.take(3)
    assert pool.free_count == 2


@pytest.mark.parametrize("blocks", [(1, 1), (3,), (-1,), (4,), (0, 1, 2)])
def test_giving_back_what_was_not_taken_is_refused(blocks: tuple[int, ...]) -> None:
    pool = BlockPool(4, 16)
    assert pool.take(2) == (0, 1)
    with pytest.raises(IntegrityError):
        pool.give_back(blocks)
    pool.check_integrity({1: (0, 1)})


@pytest.mark.parametrize(
    ("owners", "sentence"),
    [
        ({1: (0,), 2: (2,)}, "Block 1 has 1 users, and is in 0 tables"),
        ({1: (0, 1), 2: (1, 2)}, "Block 1 has 1 users, and is in 2 tables"),
        ({1: (0, 1), 2: (2, 3)}, "Block 3 has 0 users, and is in 1 tables"),
        ({1: (0, 1), 2: (2, 9)}, "Block 9 has 0 users, and is in 1 tables"),
        ({1: (0, 1, 1), 2: (2,)}, "Sequence 1 has a block twice"),
    ],
)
def test_integrity_names_what_is_wrong(owners: dict[int, tuple[int, ...]], sentence: str) -> None:
    pool = BlockPool(4, 16)
    pool.take(3)
    pool.check_integrity({1: (0, 1), 2: (2,)})
    with pytest.raises(IntegrityError, match=sentence):
        pool.check_integrity(owners)


DIGESTS = [bytes([number]) * 32 for number in range(9)]


def kept_pool(block_count: int = 4) -> BlockPool:
    """Blocks 0 and 1 are kept, unused, under the first two digests."""
    pool = BlockPool(block_count, 16)
    blocks = pool.take(2)
    for block, digest in zip(blocks, DIGESTS, strict=False):
        pool.keep(block, digest)
    pool.give_back(blocks)
    return pool


def test_kept_blocks_are_found_as_far_as_the_chain_is_known() -> None:
    pool = kept_pool()
    assert pool.find(DIGESTS[:4]) == (0, 1)
    assert pool.find(DIGESTS[1:]) == (1,)
    assert pool.find(DIGESTS[2:]) == ()
    assert (pool.free_count, pool.unused_among((0, 1, 2))) == (4, 2)


def test_a_shared_block_is_free_when_its_last_user_gives_it_back() -> None:
    pool = kept_pool()
    pool.share((0, 1))
    pool.share((0,))
    assert (pool.free_count, pool.users(0), pool.users(1)) == (2, 2, 1)
    pool.check_integrity({1: (0, 1), 2: (0,)})
    pool.give_back((0, 1))
    assert pool.free_count == 3
    pool.give_back((0,))
    assert pool.free_count == 4
    with pytest.raises(IntegrityError, match="Block 0 was given back"):
        pool.give_back((0,))


def test_only_what_is_used_or_kept_is_shared() -> None:
    with pytest.raises(IntegrityError, match="Block 3 is shared"):
        kept_pool().share((3,))


def test_what_was_used_longest_ago_is_forgotten_first_and_tails_before_heads() -> None:
    pool = BlockPool(6, 16)
    old, young = pool.take(3), pool.take(3)
    for block, digest in zip(old + young, DIGESTS, strict=False):
        pool.keep(block, digest)
    pool.give_back(old)
    pool.give_back(young)
    pool.share(old[:1])
    pool.give_back(old[:1])  # its head is used again
    assert pool.take(2) == old[1:]
    assert (pool.find(DIGESTS[:3]), pool.find(DIGESTS[3:])) == (old[:1], young)
    assert pool.take(1) == young[2:]
    assert pool.take(1) == young[1:2]
    assert (pool.find(DIGESTS[:3]), pool.find(DIGESTS[3:])) == (old[:1], young[:1])


def test_in_a_large_pool_neighbours_are_forgotten_together() -> None:
    pool = BlockPool(64, 16)
    blocks = pool.take(64)
    for block in blocks:
        pool.keep(block, bytes([block]) * 32)
    pool.give_back(blocks)
    (first,) = pool.take(1)
    grown = [first]
    for _ in range(3):
        grown += pool.take(1, after=grown[-1])
    assert is_run(tuple(grown)), "though nothing was free at first"


def test_a_digest_stands_for_one_block_and_a_block_for_one_digest() -> None:
    pool = kept_pool()
    twin = pool.take(1)
    pool.keep(twin[0], DIGESTS[0])
    assert pool.find(DIGESTS[:1]) == (0,)
    pool.give_back(twin)
    assert pool.unused_among(twin) == 0


def test_free_blocks_are_given_out_before_kept_ones() -> None:
    pool = kept_pool()
    assert set(pool.take(2)) == {2, 3}
    assert pool.find(DIGESTS[:2]) == (0, 1)
    assert set(pool.take(2)) == {0, 1}
    assert pool.find(DIGESTS[:2]) == ()


def test_integrity_finds_kept_blocks_that_are_free() -> None:
    pool = kept_pool()
    pool._unused.clear()
    with pytest.raises(IntegrityError, match="one is lost"):
        pool.check_integrity({})
    pool._free.add((0, 1))
    with pytest.raises(IntegrityError, match="kept is free"):
        pool.check_integrity({})


def test_an_empty_pool_is_refused() -> None:
    with pytest.raises(ValueError, match="holds nothing"):
        BlockPool(0, 16)


@given(st.integers(1, 40), st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.booleans()), max_size=60))
def test_any_history_keeps_every_block_accounted_for(block_count: int, moves: list[tuple[bool, int, bool]]) -> None:
    pool = BlockPool(block_count, 16)
    tables: dict[int, tuple[int, ...]] = {}
    for number, (takes, size, grows) in enumerate(moves):
        if takes and size <= pool.free_count:
            longest = longest_free_run(block_count, tables)
            last = max((table[-1] for table in tables.values() if table), default=None) if grows else None
            tables[number] = pool.take(size, after=last)
            assert len(tables[number]) == size
            assert grows or not size or size > longest or is_run(tables[number])
        elif tables:
            pool.give_back(tables.pop(list(tables)[size % len(tables)]))
        pool.check_integrity(tables)
        assert pool.free_count == block_count - sum(map(len, tables.values()))


def longest_free_run(block_count: int, tables: dict[int, tuple[int, ...]]) -> int:
    owned = {block for table in tables.values() for block in table}
    marks = "".join("x" if block in owned else "." for block in range(block_count))
    return max(map(len, marks.split("x")))
