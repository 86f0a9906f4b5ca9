from __future__ import annotations

import pytest
import torch

from transport.messages import BlockCopy
from vramancer_cli.engine.kv_cache import KvPool, gather_bytes, pool_bytes
from vramancer_cli.engine.kv_rows import PlainRows
from vramancer_cli.engine.trace import KvShape

BLOCK_TOKENS = 4


@pytest.fixture
def pool() -> KvPool:
    return KvPool({2: KvShape(2, 3, 5)}, (6,), BLOCK_TOKENS, torch.float32, torch.device("cpu"))


def filled(pool: KvPool, layer: int) -> list[torch.Tensor]:
    """The memory of a plain layer's keys and values, with something in it."""
    rows = (pool.keys[layer], pool.values[layer])
    return [part.blocks.normal_() for part in rows if isinstance(part, PlainRows)]


def test_what_is_written_to_slots_is_read_back_as_a_view_or_gathered(pool: KvPool):
    key, value = torch.randn(2, 10, 3), torch.randn(2, 10, 5)
    slots = torch.tensor([*range(8, 12), *range(12, 16), 16, 17])  # blocks 2, 3, 4
    pool.write(2, slots, key, value)
    viewed = pool.view(2, 8, 10)
    gathered = pool.gather(2, torch.tensor([2, 3, 4]), 10)
    for got in (viewed, gathered):
        assert torch.equal(got[0], key)
        assert torch.equal(got[1], value)
    assert viewed[0].untyped_storage().data_ptr() == filled(pool, 2)[0].untyped_storage().data_ptr()


def test_gathered_blocks_come_in_table_order(pool: KvPool):
    key, value = torch.randn(2, 6, 3), torch.randn(2, 6, 5)
    pool.write(2, torch.tensor([20, 21, 22, 23, 0, 1]), key, value)  # block 5, then 0
    got = pool.gather(2, torch.tensor([5, 0]), 6)
    assert torch.equal(got[0], key)
    assert torch.equal(got[1], value)


def test_blocks_are_copied_whole(pool: KvPool):
    keys, values = filled(pool, 2)
    before = keys.clone()
    pool.copy((BlockCopy(0, 5, 0), BlockCopy(0, 5, 3)))
    assert torch.equal(keys[[0, 3]], before[[5, 5]])
    assert torch.equal(values[0], values[5])
    assert torch.equal(keys[[1, 2, 4, 5]], before[[1, 2, 4, 5]])


def test_the_bytes_counted_are_the_bytes_taken(pool: KvPool):
    taken = sum(tensor.nbytes for tensor in (*pool.keys.values(), *pool.values.values()))
    assert taken == pool_bytes({2: KvShape(2, 3, 5)}, (6,), BLOCK_TOKENS, torch.float32)
    gathered = pool.gather(2, torch.tensor([5, 0]), 8)
    assert sum(tensor.nbytes for tensor in gathered) == gather_bytes({2: KvShape(2, 3, 5)}, 8, torch.float32)
    assert tuple(filled(pool, 2)[0].shape) == (6, BLOCK_TOKENS, 2, 3)


def test_a_windows_group_has_its_own_blocks_and_copies():
    shapes, groups = {0: KvShape(1, 2, 2), 1: KvShape(1, 2, 4)}, {1: 1}
    pool = KvPool(shapes, (6, 3), BLOCK_TOKENS, torch.float32, torch.device("cpu"), groups)
    (first, untouched), (keys, values) = filled(pool, 0), filled(pool, 1)
    assert (len(first), len(keys)) == (6, 3)
    taken = sum(tensor.nbytes for tensor in (*pool.keys.values(), *pool.values.values()))
    assert taken == pool_bytes(shapes, (6, 3), BLOCK_TOKENS, torch.float32, groups)
    before = untouched.clone()
    pool.copy((BlockCopy(1, 2, 0),))
    assert torch.equal(values[0], values[2])
    assert torch.equal(untouched, before)


def test_a_rounded_pool_takes_what_is_counted():
    shapes = {0: KvShape(2, 3, 5), 1: KvShape(1, 4, 4)}
    pool = KvPool(shapes, (6,), BLOCK_TOKENS, torch.bfloat16, torch.device("cpu"), kv_cache="int8")
    taken = sum(tensor.nbytes for tensor in (*pool.keys.values(), *pool.values.values()))
    assert taken == pool_bytes(shapes, (6,), BLOCK_TOKENS, torch.bfloat16, kv_cache="int8")
    assert taken == 6 * BLOCK_TOKENS * ((2 * 8 + 4 * 4) + (8 + 2 * 4))
    assert gather_bytes(shapes, 7, torch.bfloat16, "int8") == 7 * (2 * 8 * 2 + 2 * 8 + 4 * 4)
