"""The models that both sides are given: the same weights, and a tokenizer whose every token is text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.table.cells import FORMATS, Bits
from bench.table.gguf_model import gguf_file
from bench.table.held import ours_bytes, theirs_bytes
from bench.table.model import Shape, checkpoint, tokenizer
from bench.table.ours import Place, Serving, running
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.gguf_folder import unfold

TINY = Shape("tiny", hidden=128, layers=4, heads=4, kv_heads=2, mlp=256, vocabulary=512, context_tokens=512)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(TINY, tmp_path_factory.mktemp("models"))


def test_the_same_weights_are_made_again(folder: Path, tmp_path: Path):
    other = checkpoint(TINY, tmp_path)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    assert names and all((folder / name).read_bytes() == (other / name).read_bytes() for name in names)


@pytest.mark.parametrize(("bits", "error"), [(8, 0.01), (4, 0.12)])
def test_a_gguf_file_holds_the_checkpoints_weights(folder: Path, tmp_path: Path, bits: Bits, error: float):
    """Read with the program's own reader, which puts rotated rows back."""
    stored = open_checkpoint(unfold(gguf_file(TINY, folder, FORMATS[bits].theirs), tmp_path)).tensors
    plain = open_checkpoint(folder).tensors
    assert stored.keys() == plain.keys()
    for name in plain:
        ours, theirs = (tensors[name].read_as(torch.float32).read().float() for tensors in (plain, stored))
        assert (ours - theirs).norm() <= error * ours.norm(), name


def test_bytes_are_those_of_all_weights(folder: Path):
    weights = TINY.matrix_weights + 2 * TINY.head_weights
    norms = TINY.hidden * (2 * TINY.layers + 1)
    assert theirs_bytes(gguf_file(TINY, folder, "Q8_0")) == weights * 34 // 32 + 4 * norms
    assert ours_bytes(folder, "none") == 2 * (weights + norms)


def test_every_token_is_text_by_itself_whatever_stands_beside_it():
    made = tokenizer(32000)
    texts = [made.decode([number]) for number in range(len(made))]
    assert len(texts) == len(set(texts)) == 32000 and all(text.isascii() and text for text in texts)
    assert made.decode([700, 94, 31999]) == texts[700] + texts[94] + texts[31999]


def test_a_real_node_answers_as_many_tokens_as_were_asked_for(folder: Path, tmp_path: Path):
    """One node, over HTTP; the bench itself raises where something else ran."""
    with running(tmp_path, Serving(TINY, folder, "none", context_tokens=256, memory_bytes=64 << 20), [Place()]) as ours:
        assert ours.prefill(64) > 0
        assert ours.decode(8, 12) > 0
        assert ours.decode(8, 12, streams=4) > 0
