from __future__ import annotations

import pytest
import torch

from vramancer_cli.engine import native
from vramancer_cli.engine.attention import Options, attend_sequence
from vramancer_cli.engine.batch import PART_TOKENS, Batch, Stretch
from vramancer_cli.engine.block_tables import PlacedRow
from vramancer_cli.engine.kv_cache import KvPool
from vramancer_cli.engine.trace import KvShape

CPU = torch.device("cpu")
CHUNK = PlacedRow(2, 5, (1, 2), consecutive=True, outputs=2)
SCATTERED = PlacedRow(4, 6, (7, 0), consecutive=False, outputs=0)
FRESH = PlacedRow(0, 1, (5,), consecutive=True, outputs=1)


@pytest.fixture
def pool() -> KvPool:
    pool = KvPool({0: KvShape(2, 8, 8)}, (8,), 4, torch.float32, CPU)
    generator = torch.Generator().manual_seed(3)
    for rows in (pool.keys[0], pool.values[0]):
        rows.write(torch.arange(32), torch.randn(32, 2, 8, generator=generator))
    return pool


def test_positions_slots_and_outputs(pool: KvPool):
    batch = Batch([CHUNK, SCATTERED, FRESH], pool, CPU)
    assert batch.positions.tolist() == [[2, 3, 4, 4, 5, 0]]
    assert batch.slots.tolist() == [[6, 7, 8, 0, 1, 20]]
    assert batch.outputs.tolist() == [1, 2, 5]


def test_spans_say_where_each_sequence_lies(pool: KvPool):
    chunk, scattered, fresh = Batch([CHUNK, SCATTERED, FRESH], pool, CPU).spans(0)
    assert (chunk.first, chunk.count, chunk.start, chunk.end, chunk.whole) == (0, 3, 2, 5, Stretch(5, 4))
    assert (scattered.first, scattered.count) == (3, 2)
    assert torch.is_tensor(scattered.whole.where)
    assert (scattered.whole.tokens, scattered.whole.where.tolist()) == (6, [7, 0])
    assert (fresh.first, fresh.whole) == (5, Stretch(1, 20))
    assert chunk.parts == scattered.parts == fresh.parts == ()


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
        pool = KvPool({0: KvShape(2, 8, 8)}, (8,), 4, torch.float32, CPU)
        first = PlacedRow(0, 5, blocks, blocks == (0, 1), outputs=0)
        second = PlacedRow(5, 8, blocks, blocks == (0, 1), outputs=1)
        Batch([first], pool, CPU).attend(0, query[:, :5], key[:, :5], value[:, :5], Options())
        outputs.append(Batch([second], pool, CPU).attend(0, query[:, 5:], key[:, 5:], value[:, 5:], Options()))
    assert torch.equal(*outputs)


def test_a_long_context_is_read_in_parts_and_gives_the_same_wherever_it_lies():
    size, tokens = 16, 2 * PART_TOKENS + 300
    count = -(-tokens // size)
    consecutive, shared = tuple(range(count)), (*range(count, count + 200), *range(200, count))
    scattered = tuple(range(0, 2 * count, 2))
    pool = KvPool({0: KvShape(2, 8, 8)}, (2 * count,), size, torch.float32, CPU)
    key, value, query = torch.randn(2, tokens, 8), torch.randn(2, tokens, 8), torch.randn(4, 1, 8)
    outputs: list[torch.Tensor] = []
    for blocks in (consecutive, shared, scattered):
        row = PlacedRow(0, tokens, blocks, blocks == consecutive, outputs=0)
        pool.write(0, Batch([row], pool, CPU).slots[0], key, value)
        batch = Batch([PlacedRow(tokens - 1, tokens, blocks, blocks == consecutive, outputs=1)], pool, CPU)
        outputs.append(batch.attend(0, query, key[:, -1:], value[:, -1:], Options()))
        places = [part.where for part in batch.spans(0)[0].parts]
        assert sum(part.tokens for part in batch.spans(0)[0].parts) == tokens
        assert [torch.is_tensor(where) for where in places] == [
            blocks == scattered or (blocks == shared and part == 1) for part in range(3)
        ]
    whole = attend_sequence(query, key, value, tokens - 1, Options()).transpose(0, 1)
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    torch.testing.assert_close(outputs[0], whole, atol=1e-6, rtol=0)
    windowed = Batch([row], pool, CPU)
    assert windowed.spans(0)[0].parts == (), "a chunk of a prompt is read whole"


@pytest.mark.skipif(not native.is_there(), reason="the native kernels are not built here")
@pytest.mark.parametrize("options", [Options(), Options(sliding_window=2), Options(softcap=3.0, scaling=0.5)], ids=str)
def test_short_rows_are_attended_to_natively(pool: KvPool, options: Options):
    query, key, value = torch.randn(4, 6, 8), torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    rows = [CHUNK, SCATTERED, FRESH]
    found = Batch(rows, pool, CPU, native=True).attend(0, query, key, value, options)
    expected = Batch(rows, pool, CPU).attend(0, query, key, value, options)
    assert (found - expected).abs().max() < 1e-5
    alone = Batch([SCATTERED], pool, CPU, native=True)
    assert torch.equal(alone.attend(0, query[:, 3:5], key[:, 3:5], value[:, 3:5], options), found[3:5])


@pytest.mark.skipif(not native.is_there(), reason="the native kernels are not built here")
def test_long_rows_behind_short_ones_keep_torchs_bits():
    pool = KvPool({0: KvShape(2, 8, 8)}, (12,), 4, torch.float32, CPU)
    long = PlacedRow(0, 20, (3, 4, 5, 6, 7), consecutive=True, outputs=1)
    query, key, value = torch.randn(4, 21, 8), torch.randn(2, 21, 8), torch.randn(2, 21, 8)
    found = Batch([FRESH, long], pool, CPU, native=True).attend(0, query, key, value, Options())
    expected = Batch([FRESH, long], pool, CPU).attend(0, query, key, value, Options())
    assert torch.equal(found[1:], expected[1:])
    assert (found[0] - expected[0]).abs().max() < 1e-5
