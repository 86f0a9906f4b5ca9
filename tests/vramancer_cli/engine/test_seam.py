from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.family_matrix import make_family
from tests.helpers.stepping import no_progress
from transport.types import LayerRange
from vramancer_cli.engine import architecture, weights
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.seam import SplitModel, StandIn
from vramancer_cli.engine.trace import trace_layers


def split(folder: Path, layers: LayerRange | None) -> SplitModel:
    """A model without a cache, with the family's own attention; the ends where there are no `layers`."""
    checkpoint = open_checkpoint(folder)
    seams = trace_layers(checkpoint).seams
    model = architecture.build(checkpoint, torch.float32, ragged=False)
    made = architecture.keep_layers(model, seams, layers) if layers else architecture.keep_ends(model, seams)
    weights.load_into(model, checkpoint, torch.device("cpu"), no_progress)
    return made


@pytest.mark.parametrize("family", ["gemma3n_text", "deepseek_v4", "hy_v4"])
def test_from_cut_to_cut_it_is_bit_for_bit_transformers(tmp_path: Path, family: str):
    whole = make_family(tmp_path, family, 0)
    ids = torch.arange(1, 31)[None]
    positions = torch.arange(30)[None]
    ends = split(tmp_path, None)
    with torch.inference_mode():
        crossing = ends.prologue(input_ids=ids, position_ids=positions)
        for layer in range(len(ends.seams.calls)):
            stage = split(tmp_path, LayerRange(layer, layer + 1))
            assert set(crossing) >= {tensor.name for tensor in ends.seams.at(layer)}
            crossing = stage.run(crossing, input_ids=torch.zeros_like(ids), position_ids=positions)
        got = ends.epilogue(crossing["result"], input_ids=torch.zeros_like(ids), use_cache=False).logits
        assert torch.equal(got, whole(input_ids=ids, use_cache=False).logits)


def test_a_stand_in_has_the_shape_of_what_it_stands_for():
    stand_in = StandIn((1, 1, 8), 1, torch.bfloat16)
    given = stand_in(torch.zeros(1, 5, dtype=torch.int64))
    assert given.shape == (1, 5, 8)
    assert given.dtype == torch.bfloat16
    assert not given.any()
