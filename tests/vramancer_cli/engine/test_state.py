from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.family_matrix import make_family
from transport.errors import RemoteProtocolError
from transport.types import LayerRange
from vramancer_cli.engine.block_tables import PlacedRow
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.sequence_cache import Place
from vramancer_cli.engine.shard import Shard
from vramancer_cli.engine.state import StatePool


class Nowhere(Place):
    start = 0


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    make_family(tmp_path, "qwen3_next", 0)
    return Shard(open_checkpoint(tmp_path), LayerRange(0, 2), torch.float32)


def row(start: int, state: int | None) -> PlacedRow:
    return PlacedRow(start, start + 1, (0,), True, 0, state)


def test_a_sequence_keeps_its_state_until_another_begins_in_its_slot(shard: Shard):
    pool, place = StatePool(shard, 2), Nowhere()
    first, other = pool.cache(row(0, 1), place), pool.cache(row(0, 0), place)
    assert pool.cache(row(5, 1), place) is first is not other
    assert pool.cache(row(0, 1), place) is not first
    assert pool.cache(row(1, 0), place) is other


@pytest.mark.parametrize(("start", "slot"), [(3, 0), (0, 2), (0, None), (4, None)])
def test_a_slot_that_is_empty_or_does_not_exist_is_refused(shard: Shard, start: int, slot: int | None):
    with pytest.raises(RemoteProtocolError, match="empty"):
        StatePool(shard, 2).cache(row(start, slot), Nowhere())


def test_models_without_state_need_no_slot(shard: Shard):
    pool = StatePool(shard, 0)
    assert pool.cache(row(3, None), Nowhere()) is pool.cache(row(3, None), Nowhere())
