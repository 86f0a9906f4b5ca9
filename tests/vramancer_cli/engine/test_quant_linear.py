"""Which weights are quantised, what is counted of them, and split models with them (grade "stable")."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from tests.helpers.checkpoints import make_model
from tests.helpers.stepping import Driver, Request, make_plan, no_progress
from transport.messages import ModelRef
from transport.types import LayerRange, WeightFormat
from vramancer_cli.engine import architecture, weights
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.quant import quantise
from vramancer_cli.engine.quant_layer import quantisable, quantise_layer
from vramancer_cli.engine.quant_linear import QuantisedLinear, linears
from vramancer_cli.engine.shard import Shard
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.errors import OverLimitError, VramancerError

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("quantize", ["int8", "int4"])


def test_projections_are_quantised_and_small_ones_norms_and_ends_are_not(llama: Path):
    model = architecture.build(open_checkpoint(llama), torch.float32)
    found = linears(architecture.layers_of(model)[0])
    assert set(found) == {"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    parts = quantisable(architecture.layers_of(model)[0])
    assert sorted((part.outputs, part.inputs) for part in parts) == [
        (64, 64),
        (64, 64),
        (64, 160),
        (160, 64),
        (160, 64),
    ]


def test_rows_that_are_not_whole_groups_stay_as_they_are():
    layer = torch.nn.Sequential(torch.nn.Linear(100, 640), torch.nn.Linear(640, 100))
    assert set(linears(layer)) == {"1"}


def test_a_router_is_told_by_its_outputs_one_for_each_expert():
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = torch.nn.Linear(64, 128)
            self.shared = torch.nn.Linear(64, 96)
            self.experts = torch.nn.Parameter(torch.zeros(128, 8, 64))

    assert set(linears(Layer())) == {"shared"}


def test_what_derives_from_linear_is_left_alone():
    class Gated(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # torch calls it so
            return super().forward(input).sigmoid()

    assert linears(torch.nn.Sequential(Gated(64, 64))) == {}


@BOTH
@pytest.mark.parametrize("bias", [True, False])
def test_the_module_in_place_of_a_linear_gives_what_its_dequantised_weight_gives(quantize: WeightFormat, bias: bool):
    layer = torch.nn.Sequential(torch.nn.Linear(256, 192, bias=bias))
    old = layer[0]
    assert isinstance(old, torch.nn.Linear)
    dequantised = quantise(old.weight.detach(), quantize).dequantise(slice(None), torch.float32)
    hidden = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.linear(hidden, dequantised, old.bias)
    quantise_layer(layer, quantize)
    with torch.inference_mode():
        found = layer(hidden)
        assert isinstance(layer[0], QuantisedLinear)
        assert torch.allclose(layer[0].weight, dequantised, rtol=8e-3, atol=1e-6)  # for those who read it themselves
    assert found.shape == (2, 3, 192)
    assert (found - expected).norm() < 1e-2 * expected.norm()


@BOTH
def test_the_old_weight_is_gone_at_once(quantize: WeightFormat):
    """Also where it asks for a gradient, as what transformers has loaded does."""
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64))
    old = weakref.ref(layer[0].weight)
    quantise_layer(layer, quantize)
    assert old() is None


def test_an_unloaded_layer_says_so():
    layer = torch.nn.Sequential(torch.nn.Linear(64, 64))
    quantise_layer(layer, "int8")
    layer.to("meta")
    with pytest.raises(VramancerError, match="unloaded"):
        layer(torch.zeros(1, 64))


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bytes_that_are_planned_are_the_bytes_that_are_held(llama: Path, quantize: WeightFormat, dtype: str):
    facts = weights.model_facts(llama, ModelRef("m", "folder", "", ""))
    planned = facts.weights_bytes(LayerRange(2, 5), dtype, quantize)
    shard = Shard(open_checkpoint(llama), LayerRange(2, 5), getattr(torch, dtype), quantize)
    assert shard.weights_bytes == planned
    assert planned < facts.weights_bytes(LayerRange(2, 5), dtype)
    shard.load(CPU, no_progress)
    assert sum(tensor.nbytes for tensor in held_tensors(shard)) == planned


def held_tensors(shard: Shard) -> list[torch.Tensor]:
    """Parameters, and what the kernels hold of it. oneDNN's own layout is a byte for each weight."""
    kernels = [module._kernel for module in shard._model.modules() if isinstance(module, QuantisedLinear)]
    packed: list[torch.Tensor] = []
    for kernel in kernels:
        values = vars(kernel)
        packed += [values[name] for name in ("_packed", "_codes", "_scales") if name in values]
    return [*(parameter for parameter in shard._model.parameters()), *packed]


# --- a split model --------------------------------------------------------------------------------------------------


def generate(folder: Path, stages: int, quantize: WeightFormat, dtype: str) -> list[Request]:
    engine = TorchEngine("cpu", limit_bytes=1 << 28, threads=1)
    plan = make_plan(engine, folder, stages, quantize=quantize, dtype=dtype, max_step_tokens=48)
    driver = Driver(engine, folder, plan)
    requests = [Request(list(range(5 + i, 45 + 3 * i)), 8, joins_at=i) for i in range(3)]
    driver.run(requests)
    driver.close()
    assert engine.used_bytes == 0
    return requests


@BOTH
@pytest.mark.parametrize(("dtype", "least"), [("float32", 1e-3), ("bfloat16", 0.0)])
def test_a_split_quantised_model_gives_the_tokens_of_the_unsplit_one(
    llama: Path, quantize: WeightFormat, dtype: str, least: float
):
    """Grade "stable". In float32 the margin of the two best logits shows that rounding did not decide; in bfloat16 two
    logits may be equal, and the tokens are the same because every bit is."""
    whole = generate(llama, 1, quantize, dtype)
    assert min(margin for request in whole for margin in request.margins) >= least
    for stages in (2, 4):
        assert [r.generated for r in generate(llama, stages, quantize, dtype)] == [r.generated for r in whole]


@BOTH
def test_a_quantised_model_is_another_one(llama: Path, quantize: WeightFormat):
    texts = [[r.generated for r in generate(llama, 1, chosen, "float32")] for chosen in (quantize, "none")]  # pyright: ignore
    assert texts[0] != texts[1]


def test_a_quantised_shard_fits_where_the_plain_one_does_not(llama: Path):
    """Also while it is loaded: the reservation covers the layer that is being quantised."""
    limit_bytes = 1_250_000
    plain = TorchEngine("cpu", limit_bytes=1 << 28, threads=1)
    plans = {
        quantize: make_plan(plain, llama, 1, quantize=quantize, block_count=4, max_step_tokens=16)
        for quantize in ("none", "int4")
    }
    engine = TorchEngine("cpu", limit_bytes=limit_bytes, threads=1)
    engine.load_stage(llama, plans["int4"], 0, no_progress).close()
    with pytest.raises(OverLimitError):
        engine.load_stage(llama, plans["none"], 0, no_progress)


def test_the_models_random_weights_keep_their_direction():
    """Cosine of the logits of a small Llama: what rounding costs where nothing was trained to bear it."""
    model = make_model("llama", hidden_size=256, intermediate_size=640, initializer_range=0.02).requires_grad_(False)
    ids = torch.arange(5, 69)[None]
    with torch.inference_mode():
        expected = model(input_ids=ids).logits[0]
        for quantize, least in (("int8", 0.998), ("int4", 0.93)):
            rounded = make_model("llama", hidden_size=256, intermediate_size=640, initializer_range=0.02)
            for layer in architecture.layers_of(rounded):
                quantise_layer(layer, quantize)  # pyright: ignore[reportArgumentType]
            cosine = torch.nn.functional.cosine_similarity(rounded(input_ids=ids).logits[0], expected, dim=-1)
            assert cosine.mean() > least
