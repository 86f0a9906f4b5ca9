from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.stepping import no_progress
from transport.types import LayerRange
from vramancer_cli.engine.batch import Batch
from vramancer_cli.engine.block_tables import PlacedRow
from vramancer_cli.engine.boundary import Boundary
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.kv_cache import KvPool
from vramancer_cli.engine.shard import Shard
from vramancer_cli.engine.trace import KvShape
from vramancer_cli.errors import ModelError

CPU = torch.device("cpu")


def make_shard(folder: Path, layers: LayerRange, dtype: torch.dtype = torch.float32) -> Shard:
    shard = Shard(open_checkpoint(folder), layers, dtype)
    shard.load(CPU, no_progress)
    return shard


def run(shard: Shard, hidden: torch.Tensor) -> torch.Tensor:
    """All of `hidden` [T, hidden] as one sequence's prompt."""
    pool = KvPool(shard.kv_shapes, (4,), 16, hidden.dtype, CPU)
    batch = Batch([PlacedRow(0, hidden.shape[0], (0, 1), consecutive=True, outputs=0)], pool, CPU)
    with torch.inference_mode():
        return shard.run(Boundary(hidden), batch.positions, batch).hidden


def test_its_needs_are_known_before_anything_is_loaded(llama: Path):
    shard = Shard(open_checkpoint(llama), LayerRange(2, 4), torch.bfloat16)
    assert shard.weights_bytes == 2 * 41088 * 2
    assert shard.kv_shapes == {2: KvShape(2, 8, 8), 3: KvShape(2, 8, 8)}
    assert [crossing.width for crossing in (*shard.entering, *shard.leaving)] == [64, 64]


@pytest.mark.parametrize("layers", [LayerRange(0, 3), LayerRange(3, 8), LayerRange(0, 8)])
def test_hidden_states_come_out_as_the_whole_model_has_them_there(llama: Path, layers: LayerRange):
    whole = AutoModelForCausalLM.from_pretrained(llama)
    ids = torch.arange(5, 30)[None]
    captured: dict[int, torch.Tensor] = {}
    for index, layer in enumerate(whole.model.layers):
        layer.register_forward_hook(lambda _m, _i, output, index=index: captured.update({index: output[0]}))
    with torch.inference_mode():
        captured[-1] = whole.get_input_embeddings()(ids)[0]
        whole(ids)
    got = run(make_shard(llama, layers), captured[layers.start - 1])
    torch.testing.assert_close(got, captured[layers.end - 1], atol=1e-5, rtol=1e-5)


def test_cut_in_two_is_bit_for_bit_what_it_is_whole(llama: Path):
    hidden = torch.randn(20, 64, generator=torch.Generator().manual_seed(1))
    halves = run(make_shard(llama, LayerRange(4, 8)), run(make_shard(llama, LayerRange(0, 4)), hidden))
    assert torch.equal(halves, run(make_shard(llama, LayerRange(0, 8)), hidden))


def test_it_computes_in_the_dtype_that_it_was_loaded_in(llama: Path):
    assert (
        run(make_shard(llama, LayerRange(0, 2), torch.bfloat16), torch.zeros(3, 64).bfloat16()).dtype == torch.bfloat16
    )


@pytest.mark.parametrize("layers", [LayerRange(0, 0), LayerRange(7, 9), LayerRange(-1, 2), LayerRange(3, 2)])
def test_layers_that_the_model_does_not_have_are_refused(llama: Path, layers: LayerRange):
    with pytest.raises(ModelError, match="8 layers"):
        Shard(open_checkpoint(llama), layers, torch.float32)
