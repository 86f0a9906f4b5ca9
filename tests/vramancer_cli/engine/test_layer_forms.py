"""Layers that are computed flat: which ones, that they give what the family's own code gives, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.stepping import Driver, Request, make_plan, no_progress
from transport.types import LayerRange
from vramancer_cli.engine import architecture, native
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.engine.flat_layer import FlatLayer
from vramancer_cli.engine.layer_forms import flat_form
from vramancer_cli.engine.layer_watch import Probe
from vramancer_cli.engine.shard import Shard
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.errors import VramancerError

pytestmark = pytest.mark.skipif(not native.is_there(), reason="the native kernels are not built here")

CPU = torch.device("cpu")
WIDE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256}
"""So that keys and values, too, are large enough to be quantised."""
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16},
}


def shard_of(folder: Path, dtype: torch.dtype = torch.bfloat16, quantize: Any = "int8", layers: Any = None) -> Shard:
    shard = Shard(open_checkpoint(folder), layers or LayerRange(0, 2), dtype, quantize)
    shard.load(CPU, no_progress)
    return shard


def kinds(shard: Shard) -> list[bool]:
    """Of the owned layers: whether each is flat."""
    layers = architecture.layers_of(shard._model)
    return [isinstance(layers[n], FlatLayer) for n in range(shard.layers.start, shard.layers.end)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_families_of_the_form_run_flat(tmp_path: Path, family: str, quantize: str):
    assert kinds(shard_of(make_checkpoint(tmp_path, family, **WIDE, **FAMILIES[family]), quantize=quantize)) == [
        True,
        True,
    ]


@pytest.mark.parametrize("family", ["olmo2", "granite", "gpt_neox", "mixtral", "starcoder2", "cohere", "glm"])
def test_other_families_keep_their_own_code(tmp_path: Path, family: str):
    """Norms behind the halves only, scaled residuals, both halves at once, experts, other norms, pairs that lie
    side by side."""
    extra: dict[str, Any] = {"residual_multiplier": 0.5} if family == "granite" else {}
    assert kinds(shard_of(make_checkpoint(tmp_path, family, **WIDE, **extra))) == [False, False]


def test_what_a_few_tokens_do_not_show_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A bound that no made-up token reaches: only the operator between the parts betrays it."""
    from transformers.models.llama import modeling_llama

    plain = modeling_llama.LlamaDecoderLayer.forward

    def bounded(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        return plain(self, *args, **kwargs).clamp(-1e4, 1e4)

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", bounded)
    assert kinds(shard_of(make_checkpoint(tmp_path, **WIDE))) == [False, False]


def test_a_layer_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of the same parts and operators, but twice the residual."""
    from transformers.models.llama import modeling_llama

    plain = modeling_llama.LlamaDecoderLayer.forward

    def doubled(self: Any, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return plain(self, hidden_states, **kwargs) + hidden_states

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", doubled)
    assert kinds(shard_of(make_checkpoint(tmp_path, **WIDE))) == [False, False]


def test_float32_and_unrounded_plans_keep_every_bit(tmp_path: Path):
    folder = make_checkpoint(tmp_path, **WIDE)
    assert kinds(shard_of(folder, torch.float32, "none")) == [False, False]
    assert kinds(shard_of(folder, torch.float16, "int8")) == [False, False]


def test_without_the_native_operators_the_familys_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_checkpoint(tmp_path, **WIDE)
    monkeypatch.setattr(native, "is_there", lambda: False)
    assert kinds(shard_of(folder)) == [False, False]
    assert len(generated(folder, 1)) == 3


def test_the_flat_layers_give_what_the_familys_gave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_checkpoint(tmp_path, "gemma2", **WIDE, **FAMILIES["gemma2"])
    flat = shard_of(folder, torch.float32)
    monkeypatch.setattr("vramancer_cli.engine.shard.flat_form", lambda *_: None)
    own = shard_of(folder, torch.float32)
    assert (kinds(flat), kinds(own)) == ([True, True], [False, False])
    hidden = torch.randn(7, 128)
    from vramancer_cli.engine.boundary import Boundary

    with torch.inference_mode():
        found, expected = (shard.run(Boundary(hidden), torch.arange(7)[None], Probe()).hidden for shard in (flat, own))
    assert (found - expected).norm() <= 0.01 * expected.norm()


def test_unloaded_flat_layers_hold_nothing(tmp_path: Path):
    shard = shard_of(make_checkpoint(tmp_path, **WIDE))
    layer = architecture.layers_of(shard._model)[1]
    shard.unload()
    assert all(parameter.is_meta for parameter in layer.parameters())
    with pytest.raises(VramancerError, match="unloaded"):
        layer(torch.zeros(1, 1, 128))


def test_flat_layers_move_to_another_stage(tmp_path: Path):
    folder = make_checkpoint(tmp_path, **WIDE)
    old = shard_of(folder, layers=LayerRange(0, 3))
    moved = architecture.layers_of(old._model)[1]
    new = Shard(open_checkpoint(folder), LayerRange(1, 4), torch.bfloat16, "int8")
    new.take_over(old)
    new.load(CPU, no_progress)
    assert kinds(new) == [True] * 3
    assert architecture.layers_of(new._model)[1] is moved


def generated(folder: Path, stages: int, *, shuffle: bool = True, together: bool = True) -> list[list[int]]:
    """Greedy tokens of three requests, in one batch or each alone."""
    engine = TorchEngine("cpu", limit_bytes=1 << 28, threads=1)
    driver = Driver(
        engine, folder, make_plan(engine, folder, stages, quantize="int8", dtype="bfloat16"), shuffle=shuffle
    )
    requests = [Request(list(range(5 + i, 30 + 3 * i)), 8, joins_at=i) for i in range(3)]
    for group in [requests] if together else [[request] for request in requests]:
        for request in group:
            request.joins_at = 0 if not together else request.joins_at
        driver.run(group)
        driver.ended = [*driver.ended, 0]
    driver.close()
    return [request.generated for request in requests]


def test_tokens_are_the_same_over_stages_alone_and_in_scattered_blocks(tmp_path: Path):
    """Grade "stable": bit for bit, because every row is computed by itself."""
    folder = make_checkpoint(tmp_path, **WIDE)
    whole = generated(folder, 1)
    assert generated(folder, 2) == generated(folder, 4) == whole
    assert generated(folder, 1, shuffle=False) == whole


def test_a_form_is_proved_in_the_layers_own_numbers(tmp_path: Path):
    """What was seen of one layer does not prove another."""
    shard = shard_of(make_checkpoint(tmp_path, "qwen3", head_dim=16, **WIDE), quantize="int8")
    assert flat_form(torch.nn.Identity(), _seen_elsewhere(shard)) is None


def _seen_elsewhere(shard: Shard) -> Any:
    layers = architecture.layers_of(shard._model)
    return shard._watched({0: layers[0]})[0]
