from __future__ import annotations

import pytest
import torch

from transport.messages import BlockCopy
from vramancer_cli.engine.kv_cache import KvPool, gather_bytes, pool_bytes
from vramancer_cli.engine.trace import KvShape

BLOCK_TOKENS = 4


@pytest.fixture
def pool() -> KvPool:
    return KvPool({2: KvShape(2, 3, 5)}, (6,), BLOCK_TOKENS, torch.float32, torch.device("cpu"))


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


def test_blocks_are_copied_whole(pool: KvPool):
    for tensor in (pool.keys[2], pool.values[2]):
        tensor.normal_()
    before = {layer: tensor.clone() for layer, tensor in pool.keys.items()}
    pool.copy((BlockCopy(0, 5, 0), BlockCopy(0, 5, 3)))
    assert torch.equal(pool.keys[2][[0, 3]], before[2][[5, 5]])
    assert torch.equal(pool.values[2][0], pool.values[2][5])
    assert torch.equal(pool.keys[2][[1, 2, 4, 5]], before[2][[1, 2, 4, 5]])


def test_the_bytes_counted_are_the_bytes_taken(pool: KvPool):
    taken = sum(tensor.nbytes for tensor in (*pool.keys.values(), *pool.values.values()))
    assert taken == pool_bytes({2: KvShape(2, 3, 5)}, (6,), BLOCK_TOKENS, torch.float32)
    gathered = pool.gather(2, torch.tensor([5, 0]), 8)
    assert sum(tensor.nbytes for tensor in gathered) == gather_bytes({2: KvShape(2, 3, 5)}, 8, torch.float32)
    assert tuple(pool.keys[2].shape) == (6, BLOCK_TOKENS, 2, 3)


def test_a_windows_group_has_its_own_blocks_and_copies():
    shapes, groups = {0: KvShape(1, 2, 2), 1: KvShape(1, 2, 4)}, {1: 1}
    pool = KvPool(shapes, (6, 3), BLOCK_TOKENS, torch.float32, torch.device("cpu"), groups)
    assert (pool.keys[0].shape[0], pool.keys[1].shape[0]) == (6, 3)
    taken = sum(tensor.nbytes for tensor in (*pool.keys.values(), *pool.values.values()))
    assert taken == pool_bytes(shapes, (6, 3), BLOCK_TOKENS, torch.float32, groups)
    for tensor in (*pool.keys.values(), *pool.values.values()):
        tensor.normal_()
    before = pool.values[0].clone()
    pool.copy((BlockCopy(1, 2, 0),))
    assert torch.equal(pool.values[1][0], pool.values[1][2])
    assert torch.equal(pool.values[0], before)
