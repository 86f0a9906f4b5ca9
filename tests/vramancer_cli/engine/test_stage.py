from __future__ import annotations

import gc
import weakref
from pathlib import Path

import msgspec
import pytest
import torch

from tests.helpers.stepping import make_plan, no_progress
from transport.errors import RemoteProtocolError
from transport.messages import Plan, Step, StepRow
from transport.types import LayerRange
from vramancer_cli.engine.boundary import Boundary
from vramancer_cli.engine.checkpoint import StoredTensor
from vramancer_cli.engine.stage import PagedStage
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.errors import ModelError, OverLimitError, VramancerError


@pytest.fixture
def plan(engine: TorchEngine, llama: Path) -> Plan:
    return make_plan(engine, llama, 2)


@pytest.fixture
def stages(engine: TorchEngine, llama: Path, plan: Plan) -> list[PagedStage]:
    return [engine.load_stage(llama, plan, index, no_progress) for index in range(2)]


def random_rows(count: int) -> Boundary:
    return Boundary(torch.randn(count, 64))


def prompt(count: int, *, outputs: int = 1, sequence: int = 1) -> Step:
    return Step(1, 0, (StepRow(sequence, 0, count, (0,), ((3, 4),), outputs),))


def test_what_is_reserved_is_what_the_plan_says(engine: TorchEngine, plan: Plan, stages: list[PagedStage]):
    assert engine.used_bytes == sum(stage.total_bytes for stage in plan.stages)
    for stage, placed in zip(stages, plan.stages, strict=True):
        assert (stage.weights_bytes, stage.kv_bytes) == (placed.weights_bytes, placed.kv_bytes)


def test_a_plan_that_counts_too_little_is_counted_again(engine: TorchEngine, llama: Path, plan: Plan):
    placed = msgspec.structs.replace(plan.stages[0], weights_bytes=1, kv_bytes=1, workspace_bytes=1)
    lying = msgspec.structs.replace(plan, stages=(placed, plan.stages[1]))
    engine.load_stage(llama, lying, 0, no_progress)
    assert engine.used_bytes > plan.stages[0].weights_bytes + plan.stages[0].kv_bytes


def test_a_node_told_to_hold_more_than_its_limit_fails_before_it_reads_or_takes_anything(
    llama: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
):
    needed_bytes = plan.stages[0].total_bytes
    small = TorchEngine("cpu", limit_bytes=needed_bytes - 1, threads=1)
    monkeypatch.setattr(StoredTensor, "read", lambda self: pytest.fail(f"{self.name} was read"))
    with pytest.raises(OverLimitError, match=r"Layers \[0, 4\)") as refused:
        small.load_stage(llama, plan, 0, no_progress)
    assert (refused.value.needed_bytes, refused.value.present_bytes) == (needed_bytes, needed_bytes - 1)
    assert small.used_bytes == 0


def test_the_limit_is_shared_by_all_that_is_loaded(llama: Path, plan: Plan):
    engine = TorchEngine("cpu", limit_bytes=plan.stages[0].total_bytes + 1000, threads=1)
    first = engine.load_stage(llama, plan, 0, no_progress)
    with pytest.raises(OverLimitError):
        engine.load_stage(llama, plan, 1, no_progress)
    first.close()
    engine.load_stage(llama, plan, 1, no_progress)


def test_a_failed_load_gives_its_reservation_back(
    engine: TorchEngine, llama: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
):
    def broken(self: StoredTensor) -> torch.Tensor:
        raise ModelError("the disk is gone")

    monkeypatch.setattr(StoredTensor, "read", broken)
    with pytest.raises(ModelError, match="disk"):
        engine.load_stage(llama, plan, 0, no_progress)
    assert engine.used_bytes == 0


def test_a_stage_gives_every_row_and_the_last_one_only_the_outputs(stages: list[PagedStage]):
    middle = stages[0].execute(prompt(20), random_rows(20))
    assert middle.hidden.shape == (20, 64)
    assert stages[1].execute(prompt(20), middle).hidden.shape == (1, 64)
    assert stages[1].execute(prompt(20, outputs=0), middle).hidden.shape == (0, 64)


def test_the_last_outputs_of_a_row_are_what_all_of_them_end_with(stages: list[PagedStage]):
    middle = stages[0].execute(prompt(20), random_rows(20))
    everything = stages[1].execute(prompt(20, outputs=20), middle).hidden
    assert torch.equal(stages[1].execute(prompt(20, outputs=3), middle).hidden, everything[-3:])


def test_layer_tokens_count_what_was_executed(engine: TorchEngine, stages: list[PagedStage]):
    stages[0].execute(prompt(20), random_rows(20))
    assert engine.layer_tokens == 4 * 20
    with pytest.raises(RemoteProtocolError):
        stages[0].execute(prompt(20), random_rows(19))
    assert engine.layer_tokens == 4 * 20


def test_a_step_without_rows_only_ends_sequences(stages: list[PagedStage]):
    stages[0].execute(prompt(5), random_rows(5))
    assert stages[0].execute(Step(1, 1, (), ended=(1,)), random_rows(0)).hidden.shape == (0, 64)
    with pytest.raises(RemoteProtocolError, match="its table has 0"):
        stages[0].execute(Step(1, 2, (StepRow(1, 5, 1, (2,), ((),), True),)), random_rows(1))


@pytest.mark.parametrize(
    ("step", "hidden", "why"),
    [
        (prompt(20), torch.zeros(20, 63), "was due"),
        (prompt(20), torch.zeros(1, 20, 64), "was due"),
        (prompt(20), torch.zeros(20, 64).bfloat16(), "was due"),
        (prompt(30), torch.zeros(30, 64), "allows 25"),
        (msgspec.structs.replace(prompt(20), output="tokens"), torch.zeros(20, 64), "asks for tokens"),
        (Step(1, 0, (StepRow(1, 4, 2, (0,), ((3,),), True),)), torch.zeros(2, 64), "starts at 4"),
    ],
)
def test_steps_that_contradict_the_plan_are_refused(
    engine: TorchEngine, llama: Path, plan: Plan, step: Step, hidden: torch.Tensor, why: str
):
    stage = engine.load_stage(llama, msgspec.structs.replace(plan, max_step_tokens=25), 0, no_progress)
    with pytest.raises(RemoteProtocolError, match=why):
        stage.execute(step, Boundary(hidden))
    stage.execute(prompt(25), random_rows(25))


def test_closing_frees_weights_and_cache_and_their_bytes(engine: TorchEngine, stages: list[PagedStage]):
    stages[0].execute(prompt(5), random_rows(5))
    shard, pool, _ = stages[0]._loaded or pytest.fail("not loaded")
    watched = [*map(weakref.ref, shard._model.parameters()), *map(weakref.ref, pool.keys.values())]
    assert len(watched) == 4 * 9 + 4
    del shard, pool
    gc.disable()
    try:
        for stage in stages:
            stage.close()
            stage.close()
    finally:
        gc.enable()
    assert [ref for ref in watched if ref() is not None] == []
    assert engine.used_bytes == 0
    with pytest.raises(VramancerError, match="unloaded"):
        stages[0].execute(prompt(5), random_rows(5))


def test_another_version_of_the_model_is_refused(engine: TorchEngine, llama: Path, plan: Plan):
    other = msgspec.structs.replace(plan, model=msgspec.structs.replace(plan.model, digest="0" * 64))
    with pytest.raises(ModelError, match="another version"):
        engine.load_stage(llama, other, 0, no_progress)
    with pytest.raises(ModelError, match="int3"):
        engine.load_stage(llama, msgspec.structs.replace(plan, dtype="int3"), 0, no_progress)
    placed = msgspec.structs.replace(plan.stages[0], layers=LayerRange(6, 12))
    wrong = msgspec.structs.replace(plan, stages=(placed,))
    with pytest.raises(ModelError, match="8 layers"):
        engine.load_stage(llama, wrong, 0, no_progress)
    assert engine.used_bytes == 0
