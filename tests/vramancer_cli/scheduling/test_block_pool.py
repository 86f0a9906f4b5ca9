"""BlockPool: each block has one owner or none, and tables stay consecutive where they can."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramancer_cli.scheduling.block_pool import BlockPool, IntegrityError


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
        ({1: (0,), 2: (2,)}, "1 blocks are neither free nor owned"),
        ({1: (0, 1), 2: (1, 2)}, "Block 1 is owned by sequences 1 and 2"),
        ({1: (0, 1), 2: (2, 3)}, "Block 3 of sequence 2 was never taken"),
        ({1: (0, 1), 2: (2, 9)}, "Block 9 of sequence 2 was never taken"),
    ],
)
def test_integrity_names_what_is_wrong(owners: dict[int, tuple[int, ...]], sentence: str) -> None:
    pool = BlockPool(4, 16)
    pool.take(3)
    pool.check_integrity({1: (0, 1), 2: (2,)})
    with pytest.raises(IntegrityError, match=sentence):
        pool.check_integrity(owners)


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
