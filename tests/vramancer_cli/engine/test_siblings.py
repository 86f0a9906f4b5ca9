"""Linear layers that are called with the same tensor: found, and multiplied at once with the bits of each alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from transport.types import WeightFormat
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.quant import joined_weights, may_join, quantise
from vramancer_cli.engine.quant_layer import quantise_layer
from vramancer_cli.engine.quant_linear import QuantisedLinear
from vramancer_cli.engine.siblings import SiblingLinear, watching
from vramancer_cli.engine.trace import trace_layers
from vramancer_cli.errors import VramancerError

NAMES = (("one", "two"),)


class Layer(torch.nn.Module):
    """Two siblings, the second with a bias, and one that comes after."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Linear(128, 64, bias=False)
        self.two = torch.nn.Linear(128, 96)
        self.three = torch.nn.Linear(64, 128)

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        one = self.one(hidden)
        return one, self.two(hidden) + self.three(one)[..., :96]


def test_a_llamas_are_its_attentions_inputs_and_its_gates(llama: Path):
    expected = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj"))
    assert trace_layers(open_checkpoint(llama)).siblings == dict.fromkeys(range(8), expected)


def test_what_changes_between_two_calls_is_not_the_same():
    class Changing(Layer):
        def forward(self, hidden: torch.Tensor) -> Any:
            one = self.one(hidden)
            return one, self.two(hidden.add_(1))

    with torch.no_grad(), watching([Layer(), changing := Changing(), twice := Layer()]) as watch:
        changing(torch.randn(2, 128))
        twice(torch.randn(2, 128))
        twice(torch.randn(2, 128))
    assert watch.found() == {}


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_one_product_gives_the_bits_of_several(quantize: WeightFormat, dtype: torch.dtype):
    torch.manual_seed(3)
    layer, other = Layer().to(dtype), Layer().to(dtype)
    other.load_state_dict(layer.state_dict())
    quantise_layer(layer, quantize, siblings=NAMES)
    quantise_layer(other, quantize)
    assert isinstance(layer.one, SiblingLinear) and isinstance(layer.two, SiblingLinear)
    assert layer.one.shared is layer.two.shared and isinstance(layer.three, QuantisedLinear)
    for rows in (torch.randn(1, 1, 128), torch.randn(1, 5, 128)):
        for found, expected in zip(layer(rows.to(dtype)), other(rows.to(dtype)), strict=True):
            assert (found - expected).norm() <= 1e-2 * expected.norm()  # another kernel may be the fastest for them
            assert found.is_contiguous()
    assert layer.one.shared._last is None, "nothing is kept between steps"
    layer.to("meta")
    with pytest.raises(VramancerError, match="unloaded"):
        layer.one(torch.zeros(1, 128, dtype=dtype))


def test_weights_are_joined_row_below_row():
    for quantize in ("int8", "int4"):
        weights = [quantise(torch.randn(n, 128), quantize) for n in (32, 64)]
        assert may_join(weights)
        whole = joined_weights(weights).dequantise(slice(None), torch.float32)
        assert torch.equal(whole, torch.cat([w.dequantise(slice(None), torch.float32) for w in weights]))
    assert not may_join([quantise(torch.randn(32, 128), "int8"), quantise(torch.randn(32, 128), "int4")])
