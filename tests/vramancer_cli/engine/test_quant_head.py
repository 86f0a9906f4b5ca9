"""The output head in eight bits: counted as held, near the plain one's logits, and left alone where it is tied."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.stepping import no_progress
from transport.messages import ModelRef
from transport.types import WeightFormat
from vramancer_cli.engine import weights
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.ends import EndsModel
from vramancer_cli.engine.quant_linear import QuantisedLinear
from vramancer_cli.models.quantisation import INT8

CPU = torch.device("cpu")
ROUNDING = pytest.mark.parametrize("quantize", ["int8", "int4", "int4-64", "int4-128"])


def loaded(folder: Path, quantize: WeightFormat) -> EndsModel:
    ends = EndsModel(open_checkpoint(folder), torch.float32, quantize)
    ends.load(CPU, no_progress)
    return ends


def quantised(ends: EndsModel) -> list[QuantisedLinear]:
    return [module for module in ends._model.modules() if isinstance(module, QuantisedLinear)]


@ROUNDING
def test_the_head_is_held_in_eight_bits_as_planned(llama: Path, quantize: WeightFormat):
    facts = weights.model_facts(llama, ModelRef("m", "folder", "", ""))
    ends = loaded(llama, quantize)
    (head,) = quantised(ends)
    assert (head.out_features, head.in_features) == (384, 64)
    held = [tensor for tensor in vars(head._kernel).values() if isinstance(tensor, torch.Tensor)]
    plain = sum(parameter.nbytes for parameter in ends._model.parameters())
    assert facts.ends_bytes("float32", quantize) == ends.weights_bytes == plain + INT8.held_bytes(384, 64)
    assert sum(t.nbytes for t in held) == INT8.held_bytes(384, 64)


@ROUNDING
def test_its_logits_are_near_the_plain_ones_and_a_row_feels_no_other(llama: Path, quantize: WeightFormat):
    hidden = torch.randn(9, 64, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected, found = loaded(llama, "none").logits(hidden), (ends := loaded(llama, quantize)).logits(hidden)
        assert (found - expected).norm() < 0.015 * expected.norm()
        assert torch.equal(ends.logits(hidden[4:5]), found[4:5])


@pytest.mark.parametrize("quantize", ["none", "stored"])
def test_what_rounds_nothing_leaves_it(llama: Path, quantize: WeightFormat):
    facts = weights.model_facts(llama, ModelRef("m", "folder", "", ""))
    assert not quantised(loaded(llama, quantize))
    assert facts.ends_bytes("bfloat16", quantize) == facts.ends_bytes("bfloat16")


def test_a_tied_head_stays_with_its_embedding(tied_llama: Path):
    facts = weights.model_facts(tied_llama, ModelRef("m", "folder", "", ""))
    assert facts.head is None and not quantised(loaded(tied_llama, "int8"))
    assert facts.ends_bytes("bfloat16", "int8") == facts.ends_bytes("bfloat16")


def test_making_the_head_is_part_of_what_the_ends_reserve(llama: Path):
    facts = weights.model_facts(llama, ModelRef("m", "folder", "", ""))
    assert facts.ends_workspace_bytes("bfloat16", "int8", 1) >= 384 * 64 * 2
    assert facts.ends_workspace_bytes("bfloat16", "none", 1) == facts.workspace_bytes(1)
