from __future__ import annotations

import pytest
import torch

from vramancer_cli.engine.attention import Options, attend_sequence
from vramancer_cli.engine.batch import Batch
from vramancer_cli.engine.block_tables import PlacedRow
from vramancer_cli.engine.kv_cache import KvPool
from vramancer_cli.engine.trace import KvShape

CPU = torch.device("cpu")
CHUNK = PlacedRow(2, 5, (1, 2), consecutive=True, outputs=2)
SCATTERED = PlacedRow(4, 6, (7, 0), consecutive=False, outputs=0)
FRESH = PlacedRow(0, 1, (5,), consecutive=True, outputs=1)


@pytest.fixture
def pool() -> KvPool:
    pool = KvPool({0: KvShape(2, 8, 8)}, 8, 4, torch.float32, CPU)
    generator = torch.Generator().manual_seed(3)
    for tensor in (pool.keys[0], pool.values[0]):
        tensor.normal_(generator=generator)
    return pool


def test_positions_slots_and_outputs(pool: KvPool):
    batch = Batch([CHUNK, SCATTERED, FRESH], pool, CPU)
    assert batch.positions.tolist() == [[2, 3, 4, 4, 5, 0]]
    assert batch.slots.tolist() == [6, 7, 8, 0, 1, 20]
    assert batch.outputs.tolist() == [1, 2, 5]


def test_spans_say_where_each_sequence_lies(pool: KvPool):
    chunk, scattered, fresh = Batch([CHUNK, SCATTERED, FRESH], pool, CPU).spans
    assert (chunk.first, chunk.count, chunk.start, chunk.end, chunk.where) == (0, 3, 2, 5, 4)
    assert (scattered.first, scattered.count) == (3, 2)
    assert torch.is_tensor(scattered.where)
    assert scattered.where.tolist() == [7, 0]
    assert (fresh.first, fresh.where) == (5, 20)


def test_a_row_does_not_feel_its_neighbours(pool: KvPool):
    query, key, value = torch.randn(4, 6, 8), torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    together = Batch([CHUNK, SCATTERED, FRESH], pool, CPU).attend(0, query, key, value, Options())
    alone = Batch([SCATTERED], pool, CPU).attend(0, query[:, 3:5], key[:, 3:5], value[:, 3:5], Options())
    assert torch.equal(together[3:5], alone)
    old_keys, old_values = pool.gather(0, torch.tensor([7, 0]), 6)
    assert torch.equal(old_keys[:, 4:], key[:, 3:5])
    assert torch.equal(alone.transpose(0, 1), attend_sequence(query[:, 3:5], old_keys, old_values, 4, Options()))


def test_a_scattered_table_gives_what_a_consecutive_one_gives():
    key, value, query = torch.randn(2, 8, 8), torch.randn(2, 8, 8), torch.randn(4, 8, 8)
    outputs: list[torch.Tensor] = []
    for blocks in ((0, 1), (5, 2)):
        pool = KvPool({0: KvShape(2, 8, 8)}, 8, 4, torch.float32, CPU)
        first = PlacedRow(0, 5, blocks, blocks == (0, 1), outputs=0)
        second = PlacedRow(5, 8, blocks, blocks == (0, 1), outputs=1)
        Batch([first], pool, CPU).attend(0, query[:, :5], key[:, :5], value[:, :5], Options())
        outputs.append(Batch([second], pool, CPU).attend(0, query[:, 5:], key[:, 5:], value[:, 5:], Options()))
    assert torch.equal(*outputs)
