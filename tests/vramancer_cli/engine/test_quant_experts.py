"""Experts in one tensor against transformers' own modules with the dequantised weights, whole and split."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.checkpoints import make_checkpoint, make_model
from tests.helpers.stepping import Driver, Request, make_plan
from transport.messages import ModelRef
from transport.types import LayerRange, WeightFormat
from vramancer_cli.engine import weights
from vramancer_cli.engine.quant import quantise
from vramancer_cli.engine.quant_experts import quantise_experts
from vramancer_cli.engine.quant_layer import quantisable
from vramancer_cli.engine.quant_linear import QuantisedLinear
from vramancer_cli.engine.torch_engine import TorchEngine

FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {"head_dim": 16, "sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96},
}
"""Plain; transposed with biases and a gate of its own; another place in the layer."""
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
BOTH = pytest.mark.parametrize("quantize", ["int8", "int4"])


def experts_of(family: str) -> Any:
    model = make_model(family, num_hidden_layers=1, **FAMILIES[family]).requires_grad_(False)
    return next(module for module in model.modules() if hasattr(module, "down_proj") and hasattr(module, "has_gate"))


def dequantised(module: Any, quantize: WeightFormat) -> Any:
    """A copy that computes by transformers' own loop, with the weights that the format can hold."""
    module = copy.deepcopy(module)
    module.config._experts_implementation = "eager"
    for name in ("gate_up_proj", "down_proj"):
        for expert in getattr(module, name):
            weight = expert.t() if module.is_transposed else expert
            weight.copy_(quantise(weight, quantize).dequantise(slice(None), torch.float32))
    return module


@EVERY_FAMILY
@BOTH
def test_experts_give_what_transformers_gives_with_their_dequantised_weights(family: str, quantize: WeightFormat):
    module = experts_of(family)
    reference = dequantised(module, quantize)
    quantise_experts(module, quantize)
    assert all(isinstance(expert, QuantisedLinear) for expert in (*module.gate_up_proj, *module.down_proj))
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 64, generator=draw)
    chosen = torch.stack([torch.randperm(4, generator=draw)[:2] for _ in range(9)])
    shares = torch.rand(9, 2, generator=draw)
    with torch.inference_mode():
        found, expected = module(hidden, chosen, shares), reference(hidden, chosen, shares)
        assert (found - expected).norm() < 2e-2 * expected.norm()  # two products, and a gate between them
        others = torch.tensor([0, 2, 5])
        assert torch.equal(module(hidden[others], chosen[others], shares[others]), found[others])


@EVERY_FAMILY
@BOTH
def test_a_split_mixture_gives_the_tokens_of_the_unsplit_one(tmp_path: Path, family: str, quantize: WeightFormat):
    folder = make_checkpoint(tmp_path, family, num_hidden_layers=2, **FAMILIES[family])
    texts: list[list[list[int]]] = []
    for stages in (1, 2):
        engine = TorchEngine("cpu", limit_bytes=1 << 28, threads=1)
        driver = Driver(engine, folder, make_plan(engine, folder, stages, quantize=quantize))
        requests = [Request(list(range(5 + i, 25 + 3 * i)), 5, joins_at=i) for i in range(3)]
        driver.run(requests)
        driver.close()
        assert min(margin for request in requests for margin in request.margins) > 1e-3
        texts.append([request.generated for request in requests])
    assert texts[0] == texts[1]


@BOTH
def test_the_planned_bytes_of_a_mixture_are_nearly_all_quantised(tmp_path: Path, quantize: WeightFormat):
    folder = make_checkpoint(tmp_path, "mixtral", num_hidden_layers=1, **FAMILIES["mixtral"])
    facts = weights.model_facts(folder, ModelRef("m", "folder", "", ""))
    parts = facts.layer_quantisable[0]
    parameters = sum(part.parameters for part in parts)
    assert parameters == 4 * 3 * 64 * 160 + 2 * 64 * 64
    assert max(part.largest for part in parts) == 320 * 64
    held = sum(part.held_bytes(quantize, "bfloat16") for part in parts)
    left = facts.weights_bytes(LayerRange(0, 1), "bfloat16", quantize) - held
    assert left == 2 * (facts.layer_parameters[0] - parameters) < 10_000


def test_a_projection_whose_rows_are_not_whole_groups_stays_beside_one_that_is_quantised():
    sizes = {**FAMILIES["mixtral"], "intermediate_size": 100}
    model = make_model("mixtral", num_hidden_layers=1, **sizes).requires_grad_(False)
    layer = model.model.layers[0]
    module = next(module for module in layer.modules() if hasattr(module, "has_gate"))
    assert sum(part.parameters for part in quantisable(layer)) == 4 * 200 * 64 + 2 * 64 * 64
    hidden, chosen = torch.ones(2, 64), torch.tensor([[0, 3], [1, 2]])
    with torch.inference_mode():
        before = module(hidden, chosen, torch.ones(2, 2))
        quantise_experts(layer, "int8")
        assert isinstance(module.down_proj, torch.nn.Parameter)
        assert (module(hidden, chosen, torch.ones(2, 2)) - before).norm() < 3e-2 * before.norm()
