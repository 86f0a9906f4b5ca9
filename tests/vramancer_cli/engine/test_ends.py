from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.stepping import make_plan, no_progress
from transport.errors import LocalProtocolError
from transport.messages import Plan, Step, StepRow
from vramancer_cli.engine.boundary import Boundary
from vramancer_cli.engine.ends import HEAD_COPIES, NonFiniteLogitsError
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.errors import ModelError, OverLimitError, VramancerError
from vramancer_cli.models.sampling import Draw, Sampling

GREEDY = Draw(Sampling(temperature=0.0), 0)


@pytest.fixture
def plan(engine: TorchEngine, llama: Path) -> Plan:
    return make_plan(engine, llama, 1)


def tokens(count: int) -> Step:
    return Step(1, 0, (StepRow(0, 0, count, (0,), ((),), 0),) if count else ())


def draws(sampling: Sampling, count: int) -> list[Draw]:
    return [Draw(sampling, index) for index in range(count)]


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "cohere"])
def test_embedding_and_logits_are_those_of_the_whole_model(engine: TorchEngine, tmp_path: Path, family: str):
    folder = make_checkpoint(tmp_path, family, num_hidden_layers=1, **({"head_dim": 8} if family == "gemma2" else {}))
    whole = AutoModelForCausalLM.from_pretrained(folder)
    ends = engine.load_ends(folder, make_plan(engine, folder, 1), no_progress)
    ids = [3, 0, 383, 3]
    embedded = ends.embed(tokens(4), ids).hidden
    with torch.inference_mode():
        assert torch.equal(embedded, whole.get_input_embeddings()(torch.tensor(ids)))
        output = whole(torch.tensor([ids]), output_hidden_states=True)
        captured: list[torch.Tensor] = []
        layers = next(module for module in whole.modules() if isinstance(module, torch.nn.ModuleList))
        layers[-1].register_forward_hook(lambda _m, _i, out: captured.append(out if torch.is_tensor(out) else out[0]))
        whole(torch.tensor([ids]))
    torch.testing.assert_close(ends.logits(captured[0][0]), output.logits[0])


def test_ids_outside_the_vocabulary_are_refused(engine: TorchEngine, llama: Path, plan: Plan):
    ends = engine.load_ends(llama, plan, no_progress)
    for wrong in (-1, 384):
        with pytest.raises(ModelError, match="vocabulary of 384"):
            ends.embed(tokens(2), [0, wrong])
    assert ends.embed(tokens(0), []).hidden.shape == (0, 64)


def test_the_ends_reserve_weights_and_what_sampling_needs(engine: TorchEngine, llama: Path, plan: Plan):
    row_bytes = HEAD_COPIES * 384 * 4
    ends = engine.load_ends(llama, plan, no_progress)
    assert engine.used_bytes == ends.weights_bytes + row_bytes == plan.ends_bytes + row_bytes
    ends.close()
    ends.close()
    assert engine.used_bytes == 0
    with pytest.raises(VramancerError, match="unloaded"):
        ends.embed(tokens(1), [1])
    generous = msgspec.structs.replace(plan, ends_bytes=plan.ends_bytes + 10 * row_bytes)
    engine.load_ends(llama, generous, no_progress)
    assert engine.used_bytes == generous.ends_bytes


def test_ends_over_the_limit_are_refused(llama: Path, plan: Plan):
    with pytest.raises(OverLimitError, match="Embedding"):
        TorchEngine("cpu", limit_bytes=plan.ends_bytes, threads=1).load_ends(llama, plan, no_progress)


def test_rows_taken_in_turns_are_the_rows_taken_at_once(engine: TorchEngine, llama: Path, plan: Plan):
    one_by_one = engine.load_ends(llama, plan, no_progress)
    generous = msgspec.structs.replace(plan, ends_bytes=plan.ends_bytes + (1 << 20))
    at_once = engine.load_ends(llama, generous, no_progress)
    rows, some = Boundary(torch.randn(9, 64)), draws(Sampling(temperature=0.8, top_p=0.9, seed=4), 9)
    assert one_by_one.sample(rows, some) == at_once.sample(rows, some)


def test_rows_and_draws_go_together(engine: TorchEngine, llama: Path, plan: Plan):
    with pytest.raises(LocalProtocolError, match="2 rows"):
        engine.load_ends(llama, plan, no_progress).sample(Boundary(torch.zeros(2, 64)), [GREEDY])


@pytest.mark.parametrize(("name", "value"), [("lm_head.weight", torch.inf), ("model.embed_tokens.weight", torch.nan)])
def test_logits_that_are_not_finite_are_an_error_with_a_name(
    engine: TorchEngine, llama: Path, tmp_path: Path, name: str, value: float
):
    folder = Path(shutil.copytree(llama, tmp_path / "m"))
    stored = load_file(folder / "model.safetensors")
    stored[name][0] = value
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(NonFiniteLogitsError, match="not finite"):
        engine.load_ends(folder, make_plan(engine, folder, 1), no_progress)
    assert engine.used_bytes == 0
    ends = engine.load_ends(llama, make_plan(engine, llama, 1), no_progress)
    with pytest.raises(NonFiniteLogitsError, match="not finite"):
        ends.sample(Boundary(torch.full((1, 64), torch.nan)), [GREEDY])


def test_what_the_base_model_does_before_its_layers_is_done_by_the_ends(engine: TorchEngine, tmp_path: Path):
    folder = make_checkpoint(tmp_path, "granite", num_hidden_layers=2, embedding_multiplier=3.0)
    whole = AutoModelForCausalLM.from_pretrained(folder)
    ends = engine.load_ends(folder, make_plan(engine, folder, 1), no_progress)
    expected = whole.get_input_embeddings()(torch.tensor([7, 8])) * 3.0
    assert torch.equal(ends.embed(tokens(2), [7, 8]).hidden, expected)


def test_positions_that_are_embedded_are_those_of_the_step(engine: TorchEngine, tmp_path: Path):
    folder = make_checkpoint(tmp_path, "gpt2", n_embd=32, n_layer=2, n_head=2, n_positions=64)
    whole = AutoModelForCausalLM.from_pretrained(folder)
    ends = engine.load_ends(folder, make_plan(engine, folder, 1), no_progress)
    step = Step(1, 0, (StepRow(0, 5, 1, (0,), ((),), 0), StepRow(1, 0, 2, (0,), ((),), 0)))
    expected = whole.transformer.wte(torch.tensor([3, 3, 3])) + whole.transformer.wpe(torch.tensor([5, 0, 1]))
    assert torch.equal(ends.embed(step, [3, 3, 3]).hidden, expected)
