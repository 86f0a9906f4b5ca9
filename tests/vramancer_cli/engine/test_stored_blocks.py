"""Blocks of a GGUF file that layers are held in as they are: the same text, the planned bytes, and when."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from tests.helpers.gguf_files import write_gguf
from tests.helpers.gguf_scene import MARGIN, PROMPT, TINY, WIDE, answered, held_bytes, second_roundings
from tests.helpers.greedy import greedy
from tests.helpers.stepping import Driver, Request, make_plan, no_progress
from tests.helpers.weight_scene import WeightScene
from transport.types import LayerRange, WeightFormat
from vramancer_cli.engine import weights
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.gguf_blocks import taken_over
from vramancer_cli.engine.gguf_folder import unfold
from vramancer_cli.engine.gguf_tensor import GgufTensor
from vramancer_cli.engine.quant_choice import candidates, kernel_for
from vramancer_cli.engine.quant_native import native_kernels
from vramancer_cli.engine.shard import Shard
from vramancer_cli.engine.tensors import DTYPES
from vramancer_cli.engine.torch_engine import TorchEngine

TAKEN = pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, Kind.Q4_1], ids=lambda kind: kind.name)
BLOCK_BYTES = {Kind.Q8_0: 32 + 4, Kind.Q4_0: 16 + 4, Kind.Q4_1: 16 + 4}


@TAKEN
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_blocks_taken_over_give_the_text_of_the_dequantised_model(
    tmp_path: Path, engine: TorchEngine, kind: Kind, family: str
):
    """In float32: grade "identical". Of a family whose rows were moved, and of one whose rows were not."""
    path = tmp_path / "model.gguf"
    text, margin = greedy(write_gguf(path, kind, family, **TINY), PROMPT, 12)
    assert margin > MARGIN
    assert answered(engine, unfold(path, tmp_path / "shelf"), quantize="stored") == text


@TAKEN
def test_in_bfloat16_a_cut_changes_no_token_and_nothing_is_rounded_again(
    tmp_path: Path, engine: TorchEngine, caplog: pytest.LogCaptureFixture, kind: Kind
):
    """Grade "stable"."""
    caplog.set_level("INFO", "vramancer.engine")
    path = tmp_path / "model.gguf"
    write_gguf(path, kind, **WIDE)
    folder = unfold(path, tmp_path / "shelf")
    texts: list[list[int]] = []
    for stages in (1, 2):
        driver = Driver(engine, folder, make_plan(engine, folder, stages, quantize="stored", dtype="bfloat16"))
        request = Request(list(PROMPT), 12)
        driver.run([request])
        driver.close()
        texts.append(request.generated)
    assert texts[0] == texts[1]
    events = [record.msg["event"] for record in caplog.records if isinstance(record.msg, dict)]
    assert "weights rounded a second time" not in events and "weights held as they are stored" in events


@TAKEN
def test_the_kernels_of_taken_blocks_are_no_further_off_than_their_activations(kind: Kind):
    """Rounded to bfloat16 as the dequantised weight is, or to eight bits for each block by our own kernels; and in
    float32 they are not off at all."""
    random = np.random.default_rng(kind.value)
    blocks = gguf.quantize(random.standard_normal((512, 1024), np.float32), kind)
    weight = taken_over(torch.from_numpy(blocks).view(512, 32, -1), kind)
    exact = torch.from_numpy(gguf.dequantize(blocks, kind))
    rows = torch.randn(16, 1024, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = rows.float() @ exact.t()
    plain = (rows @ exact.bfloat16().t()).float() - expected
    blocks_of_rows = rows.float().view(16, 32, 32)
    steps = blocks_of_rows.abs().amax(-1, keepdim=True) / 127
    in_bytes = ((blocks_of_rows / steps).round() * steps).view(16, -1) @ exact.t() - expected
    for make in candidates(weight.format, torch.device("cpu")):
        most = in_bytes if make in native_kernels(weight.format, torch.device("cpu")) else plain
        assert (make(weight)(rows).float() - expected).norm() < 1.3 * most.norm(), make
    assert torch.allclose(kernel_for(weight, torch.float32)(rows.float()), expected, rtol=1e-4, atol=1e-4)


@TAKEN
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bytes_planned_for_taken_blocks_are_the_bytes_held(tmp_path: Path, kind: Kind, dtype: str):
    path = tmp_path / "model.gguf"
    write_gguf(path, kind, **WIDE)
    folder = unfold(path, tmp_path / "shelf")
    facts = weights.model_facts(folder, WeightScene(tmp_path, folder).ref)
    assert facts.is_stored_packed
    layers = LayerRange(1, 2)
    planned = facts.weights_bytes(layers, dtype, "stored")
    shard = Shard(open_checkpoint(folder), layers, DTYPES[dtype], "stored")
    assert shard.weights_bytes == planned
    shard.load(torch.device("cpu"), no_progress)
    assert held_bytes(shard) == planned
    packed = sum(part.parameters for part in facts.layer_quantisable[1])
    assert planned - packed // 32 * BLOCK_BYTES[kind] == 2 * 256 * DTYPES[dtype].itemsize  # the norms


@TAKEN
@pytest.mark.parametrize("quantize", ["int8", "int4", "int4-128"])
def test_what_asks_for_as_many_bits_takes_the_blocks_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: Kind, quantize: WeightFormat
):
    caplog.set_level("INFO", "vramancer.engine")
    path = tmp_path / "model.gguf"
    write_gguf(path, kind, **WIDE)
    shard = Shard(open_checkpoint(unfold(path, tmp_path / "shelf")), LayerRange(0, 1), torch.bfloat16, quantize)
    shard.load(torch.device("cpu"), no_progress)
    rounds = kind is Kind.Q8_0 and quantize != "int8"
    assert bool(second_roundings(caplog)) == rounds
    assert held_bytes(shard) == shard.weights_bytes


@TAKEN
def test_loading_taken_blocks_reads_no_weight_but_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Kind
):
    """None is ever dequantised: what the plan reserves for loading has no room for that."""
    path = tmp_path / "model.gguf"
    write_gguf(path, kind, **WIDE)
    checkpoint = open_checkpoint(unfold(path, tmp_path / "shelf"))
    read: list[str] = []
    unpacked = GgufTensor._unpacked
    monkeypatch.setattr(GgufTensor, "_unpacked", lambda self: read.append(self.name) or unpacked(self))
    shard = Shard(checkpoint, LayerRange(0, 2), torch.bfloat16, "stored")
    progress: list[tuple[int, int]] = []
    shard.load(torch.device("cpu"), lambda *counts: progress.append(counts))
    assert read == []
    assert progress[-1] == (progress[-1][1],) * 2 and progress[-1][1] > 2 * 256 * 256 * 4 * 18 / 32


def test_k_quants_are_not_taken_over(tmp_path: Path):
    path = tmp_path / "model.gguf"
    write_gguf(path, Kind.Q6_K, **WIDE)
    folder = unfold(path, tmp_path / "shelf")
    assert not weights.model_facts(folder, WeightScene(tmp_path, folder).ref).is_stored_packed
