"""Models whose GGUF is in several files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from tests.helpers.gguf_files import write_gguf
from tests.helpers.gguf_scene import MARGIN, PROMPT, TINY, answered, held_bytes
from tests.helpers.greedy import greedy
from tests.helpers.stepping import make_plan, no_progress
from tests.helpers.weight_scene import WeightScene
from transport.types import LayerRange, WeightFormat
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.gguf_folder import unfold
from vramancer_cli.engine.ranges import layer_ranges
from vramancer_cli.engine.shard import Shard
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.errors import ModelError
from vramancer_cli.runtime.weight_fetch import fetch_heads, fetch_ranges


def parts_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.gguf"))


def test_a_model_in_several_files_is_that_in_one(tmp_path: Path, engine: TorchEngine):
    model = write_gguf(tmp_path / "model.gguf", Kind.Q8_0, tensors_per_file=7, tie_word_embeddings=True, **TINY)
    parts = parts_of(tmp_path)
    assert len(parts) == 4
    folders = {unfold(part, tmp_path / "shelf") for part in parts}
    assert len(folders) == 1
    folder = folders.pop()
    assert folder.name == "model"
    text, margin = greedy(model, PROMPT, 12)
    assert margin > MARGIN
    assert answered(engine, folder) == text
    assert {tensor.path for tensor in open_checkpoint(folder).tensors.values()} == set(parts[1:])


@pytest.mark.parametrize("quantize", ["none", "stored"])
def test_a_worker_gets_its_layers_out_of_several_files(tmp_path: Path, engine: TorchEngine, quantize: WeightFormat):
    write_gguf(tmp_path / "model.gguf", Kind.Q4_0, tensors_per_file=10, num_hidden_layers=4)
    scene = WeightScene(tmp_path, unfold(parts_of(tmp_path)[0], tmp_path / "shelf"))
    plan = make_plan(engine, scene.model, 2, quantize=quantize)
    copy, link = scene.copy(), scene.link()
    fetch_heads(link, copy, scene.ref)
    fetch_ranges(link, copy, layer_ranges(copy.folder, plan, plan.stages[1].layers), lambda _there, _moved: None)
    copied, original = open_checkpoint(copy.folder), open_checkpoint(scene.model)
    assert copied.digest == original.digest
    for name, tensor in original.tensors.items():
        here = "layers.2." in name or "layers.3." in name
        assert copied.tensors[name].same_bytes(tensor) == here, name
    shards = [Shard(checkpoint, LayerRange(2, 4), torch.float32, quantize) for checkpoint in (copied, original)]
    for shard in shards:
        shard.load(torch.device("cpu"), no_progress)
    assert held_bytes(shards[0]) == held_bytes(shards[1]) == plan.stages[1].weights_bytes


def test_a_part_that_is_missing_renamed_or_anothers_is_refused(tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", Kind.Q8_0, tensors_per_file=7, **TINY)
    parts = parts_of(tmp_path)
    saved = [part.read_bytes() for part in parts]
    parts[2].unlink()
    with pytest.raises(ModelError, match=rf"{parts[2].name} is missing"):
        unfold(parts[0], tmp_path / "shelf")
    parts[2].write_bytes(saved[1])
    with pytest.raises(ModelError, match="does not say that it is part 3 of 4"):
        unfold(parts[0], tmp_path / "shelf")
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(saved[0])
    with pytest.raises(ModelError, match="not named like one"):
        unfold(alone, tmp_path / "shelf")
    assert not any((tmp_path / "shelf").glob("*/*"))


def test_a_part_that_was_changed_later_is_noticed(tmp_path: Path):
    write_gguf(tmp_path / "model.gguf", Kind.Q8_0, tensors_per_file=7, **TINY)
    parts = parts_of(tmp_path)
    folder = unfold(parts[0], tmp_path / "shelf")
    parts[3].write_bytes(parts[3].read_bytes().replace(b"blk.1", b"blk.0"))
    with pytest.raises(ModelError, match=r"not the file any more|one name"):
        open_checkpoint(folder)
