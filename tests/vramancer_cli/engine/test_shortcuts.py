"""Ends that are one or two modules: found where it is so, with the bits of the family's forward, else left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.stepping import no_progress
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.ends import EndsModel
from vramancer_cli.engine.shortcuts import between, watching


@pytest.mark.parametrize(
    ("family", "extra", "direct"),
    [("llama", {}, (True, True)), ("gemma2", {"head_dim": 16}, (True, False)), ("granite", {}, (False, False))],
    ids=str,
)
def test_ends_give_the_familys_bits(tmp_path: Path, family: str, extra: dict[str, Any], direct: tuple[bool, bool]):
    """Gemma 2 caps its logits; Granite scales embeddings and logits."""
    ends = EndsModel(open_checkpoint(make_checkpoint(tmp_path, family, **extra)), torch.float32)
    ends.load(torch.device("cpu"), no_progress)
    assert (ends._embedding is not None, ends._head is not None) == direct
    ids, positions = torch.tensor([5, 6, 7]), torch.tensor([3, 0, 9])
    with torch.inference_mode():
        found = ends.embed(ids, positions).hidden
        logits = ends.logits(found)
        ends._embedding = ends._head = None
        assert torch.equal(found, ends.embed(ids, positions).hidden)
        assert torch.equal(logits, ends.logits(found))


def test_what_is_changed_in_place_afterwards_is_no_shortcut():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    given = torch.randn(2, 4)
    with torch.no_grad(), watching(model) as calls:
        output = model(given)
        assert between(calls, given, output) is not None
        output.mul_(2)
        assert between(calls, given, output) is None
