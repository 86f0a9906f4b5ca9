from __future__ import annotations

import pytest
import torch

from transport.errors import RemoteProtocolError
from transport.messages import Step, StepRow
from vramancer_cli.engine.kv_cache import BlockTables, KvPool, gather_bytes, pool_bytes
from vramancer_cli.engine.trace import KvShape

BLOCK_TOKENS = 4


def row(sequence: int, start: int, count: int, first: int, blocks: tuple[int, ...], outputs: int = 0) -> StepRow:
    return StepRow(sequence, start, count, (first,), (blocks,), outputs)


def step(*rows: StepRow, ended: tuple[int, ...] = ()) -> Step:
    return Step(1, 0, rows, ended)


@pytest.fixture
def tables() -> BlockTables:
    """Sequence 1 with 6 tokens in blocks 3 and 4."""
    tables = BlockTables(block_count=10, block_tokens=BLOCK_TOKENS, context_tokens=20)
    tables.apply(step(row(1, 0, 6, 0, (3, 4))))
    return tables


def test_tables_grow_by_the_blocks_of_each_step(tables: BlockTables):
    [placed] = tables.apply(step(row(1, 6, 2, 2, ())))
    assert (placed.start, placed.end, placed.blocks, placed.consecutive) == (6, 8, (3, 4), True)
    [placed] = tables.apply(step(row(1, 8, 1, 2, (5,))))
    assert (placed.blocks, placed.consecutive) == ((3, 4, 5), True)
    [placed] = tables.apply(step(row(1, 9, 8, 3, (9, 0), outputs=3)))
    assert (placed.end, placed.blocks, placed.consecutive, placed.outputs) == (17, (3, 4, 5, 9, 0), False, 3)


def test_a_first_block_of_zero_replaces_the_table(tables: BlockTables):
    [placed] = tables.apply(step(row(1, 6, 1, 0, (7, 6))))
    assert (placed.blocks, placed.consecutive) == ((7, 6), False)
    [placed] = tables.apply(step(row(1, 0, 5, 0, (1, 2))))
    assert (placed.start, placed.end, placed.blocks) == (0, 5, (1, 2))


def test_ended_sequences_are_dropped_before_the_rows_are_placed(tables: BlockTables):
    [placed] = tables.apply(step(row(2, 0, 1, 0, (3,)), ended=(1, 99)))
    assert placed.blocks == (3,)
    assert len(tables) == 1
    assert tables.apply(step(ended=(2,))) == []
    assert len(tables) == 0


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (row(1, 7, 1, 2, ()), "starts at 7, but 6 tokens are here"),
        (row(1, 5, 1, 2, ()), "starts at 5, but 6 tokens are here"),
        (row(1, 7, 1, 0, (3, 4)), "starts at 7"),
        (row(2, 1, 1, 0, (5,)), "starts at 1, but 0 tokens are here"),
        (row(1, 6, 3, 2, ()), "too few for 9 tokens"),
        (row(2, 0, 1, 0, ()), "too few for 1 tokens"),
        (row(1, 6, 3, 3, (5,)), "gets blocks at 3, but its table has 2"),
        (row(1, 6, 3, 1, (5,)), "gets blocks at 1, but its table has 2"),
        (row(1, 6, 3, 2, (10,)), "does not exist"),
        (row(1, 6, 3, 2, (-1,)), "does not exist"),
        (row(1, 6, 3, 2, (3,)), "same block twice"),
        (row(1, 6, 3, 2, (5, 5)), "same block twice"),
        (row(1, 6, 0, 2, ()), "adds 0 tokens"),
        (row(1, 6, -1, 2, ()), "adds -1 tokens"),
        (row(1, -1, 1, 2, ()), "at -1"),
        (row(1, 6, 2, 2, (), outputs=3), "wants 3 outputs of 2 tokens"),
        (row(1, 6, 2, 2, (), outputs=-1), "wants -1 outputs"),
        (row(1, 6, 15, 2, (5, 6, 7, 8)), "grows to 21 tokens, over 20"),
        (StepRow(1, 6, 1, (), (), 0), "cache groups"),
        (StepRow(1, 6, 1, (2, 0), ((), ()), 0), "cache groups"),
        (StepRow(1, 6, 1, (2,), (), 0), "cache groups"),
    ],
)
def test_a_row_that_contradicts_the_tables_is_refused_and_changes_nothing(
    tables: BlockTables, wrong: StepRow, why: str
):
    with pytest.raises(RemoteProtocolError, match=why):
        tables.apply(step(row(3, 0, 1, 0, (0,)), wrong, ended=(1,) if wrong.sequence != 1 else ()))
    assert len(tables) == 1
    [placed] = tables.apply(step(row(1, 6, 1, 2, ())))
    assert placed.blocks == (3, 4)


def test_two_rows_of_a_step_may_not_touch_each_other(tables: BlockTables):
    with pytest.raises(RemoteProtocolError, match="twice in one step"):
        tables.apply(step(row(1, 6, 1, 2, ()), row(1, 7, 1, 2, ())))
    with pytest.raises(RemoteProtocolError, match="another row's block"):
        tables.apply(step(row(1, 6, 1, 2, ()), row(2, 0, 1, 0, (4,))))


@pytest.fixture
def pool() -> KvPool:
    return KvPool({2: KvShape(2, 3, 5)}, 6, BLOCK_TOKENS, torch.float32, torch.device("cpu"))


def test_what_is_written_to_slots_is_read_back_as_a_view_or_gathered(pool: KvPool):
    key, value = torch.randn(2, 10, 3), torch.randn(2, 10, 5)
    slots = torch.tensor([*range(8, 12), *range(12, 16), 16, 17])  # blocks 2, 3, 4
    pool.write(2, slots, key, value)
    viewed = pool.view(2, 8, 10)
    gathered = pool.gather(2, torch.tensor([2, 3, 4]), 10)
    for got in (viewed, gathered):
        assert torch.equal(got[0], key)
        assert torch.equal(got[1], value)
    assert viewed[0].untyped_storage().data_ptr() == pool.keys[2].untyped_storage().data_ptr()


def test_gathered_blocks_come_in_table_order(pool: KvPool):
    key, value = torch.randn(2, 6, 3), torch.randn(2, 6, 5)
    pool.write(2, torch.tensor([20, 21, 22, 23, 0, 1]), key, value)  # block 5, then 0
    got = pool.gather(2, torch.tensor([5, 0]), 6)
    assert torch.equal(got[0], key)
    assert torch.equal(got[1], value)


def test_the_bytes_counted_are_the_bytes_taken(pool: KvPool):
    taken = sum(tensor.nbytes for tensor in (*pool.keys.values(), *pool.values.values()))
    assert taken == pool_bytes({2: KvShape(2, 3, 5)}, 6 * BLOCK_TOKENS, torch.float32)
    gathered = pool.gather(2, torch.tensor([5, 0]), 8)
    assert sum(tensor.nbytes for tensor in gathered) == gather_bytes({2: KvShape(2, 3, 5)}, 8, torch.float32)
    assert tuple(pool.keys[2].shape) == (6, BLOCK_TOKENS, 2, 3)
