"""A stage made of another one: the layers that stay are not read again, and compute the same bits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from tests.helpers.family_matrix import make_family
from tests.helpers.stepping import Driver, Request, even_ranges, make_plan, no_progress
from transport.messages import Plan
from transport.types import LayerRange, WeightFormat
from vramancer_cli.engine.stage import PagedStage
from vramancer_cli.engine.stored_tensor import StoredTensor
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.errors import ModelError, OverLimitError, VramancerError

CUTS = [
    ([(0, 4), (4, 8)], [(0, 6), (6, 8)]),  # one grows at its end, the other shrinks at its beginning
    ([(0, 4), (4, 8)], [(0, 2), (2, 8)]),
    ([(0, 3), (3, 5), (5, 8)], [(0, 5), (5, 8)]),  # the one in the middle is lost
    ([(0, 3), (3, 8)], [(0, 3), (3, 8)]),  # nothing moves
]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of all tensors that are read."""
    names: list[str] = []
    whole = StoredTensor.read
    monkeypatch.setattr(StoredTensor, "read", lambda self: (names.append(self.name), whole(self))[1])
    return names


def ranges(cuts: list[tuple[int, int]]) -> list[LayerRange]:
    return [LayerRange(*cut) for cut in cuts]


def layers_read(names: list[str]) -> set[int]:
    return {int(found[1]) for name in names if (found := re.search(r"layers\.(\d+)\.", name))}


def load(engine: TorchEngine, folder: Path, plan: Plan, index: int, old: PagedStage | None = None) -> PagedStage:
    return engine.load_stage(folder, plan, index, no_progress, old)


def logits(driver: Driver) -> list[torch.Tensor]:
    requests = [Request(list(range(3, 40)), 4), Request(list(range(90, 110)), 4, joins_at=1)]
    driver.run(requests)
    return [row for request in requests for row in request.logits]


def moved(engine: TorchEngine, folder: Path, before: Plan, after: Plan) -> Driver:
    """A driver whose stages were made of those of another plan, after these had computed something."""
    driver = Driver(engine, folder, after)
    for stage in driver.stages:
        stage.close()
    old = Driver(engine, folder, before)
    logits(old)
    old.ends.close()
    driver.stages = [load(engine, folder, after, index, old.stages[index]) for index in range(len(after.stages))]
    for stage in old.stages:
        stage.close()
    return driver


@pytest.mark.parametrize(("before", "after", "quantize"), [*((*cut, "none") for cut in CUTS), (*CUTS[2], "int8")])
def test_only_what_moved_is_read_and_the_bits_are_those_of_a_fresh_stage(
    engine: TorchEngine,
    llama: Path,
    read: list[str],
    before: list[tuple[int, int]],
    after: list[tuple[int, int]],
    quantize: WeightFormat,
):
    plans = [make_plan(engine, llama, ranges(cuts), quantize=quantize) for cuts in (before, after)]
    fresh = Driver(engine, llama, plans[1])
    expected, used_bytes = logits(fresh), engine.used_bytes
    fresh.close()
    old = [load(engine, llama, plans[0], index) for index in range(len(before))]
    for index, (start, end) in enumerate(after):
        read.clear()
        new = load(engine, llama, plans[1], index, old[index])
        assert layers_read(read) == set(range(start, end)) - set(range(*before[index]))
        new.close()
    for stage in old:
        stage.close()
    driver = moved(engine, llama, *plans)
    assert engine.used_bytes == used_bytes
    assert all(torch.equal(a, b) for a, b in zip(logits(driver), expected, strict=True))
    driver.close()
    assert engine.used_bytes == 0


@pytest.mark.parametrize("family", ["gemma3n_text", "qwen3_next"])
def test_families_of_every_kind_can_be_moved(engine: TorchEngine, tmp_path: Path, family: str):
    make_family(tmp_path, family, 0)
    count = engine.model_facts(tmp_path, make_plan(engine, tmp_path, 1).model).layer_count
    before = make_plan(engine, tmp_path, even_ranges(count, 2))
    after = make_plan(engine, tmp_path, [LayerRange(0, 1), LayerRange(1, count)])
    fresh = Driver(engine, tmp_path, after)
    expected = logits(fresh)
    fresh.close()
    driver = moved(engine, tmp_path, before, after)
    assert all(torch.equal(a, b) for a, b in zip(logits(driver), expected, strict=True))


def test_the_tensors_themselves_stay(engine: TorchEngine, llama: Path):
    before, after = (
        make_plan(engine, llama, ranges([(0, 4), (4, 8)])),
        make_plan(engine, llama, ranges([(0, 3), (3, 8)])),
    )
    old = load(engine, llama, before, 1)
    assert old._loaded is not None
    there = {weight.data_ptr() for weight in old._loaded[0]._model.parameters() if not weight.is_meta}
    new = load(engine, llama, after, 1, old)
    assert new._loaded is not None
    assert there < {weight.data_ptr() for weight in new._loaded[0]._model.parameters() if not weight.is_meta}


@pytest.mark.parametrize("other", [{"quantize": "int8"}, {"dtype": "bfloat16"}])
def test_nothing_is_kept_of_what_computes_differently(
    engine: TorchEngine, llama: Path, read: list[str], other: dict[str, str]
):
    before, after = make_plan(engine, llama, 2, **other), make_plan(engine, llama, 2)
    old = load(engine, llama, before, 0)
    read.clear()
    load(engine, llama, after, 0, old)
    assert layers_read(read) == {0, 1, 2, 3}
    assert engine.used_bytes == after.stages[0].total_bytes


def test_a_move_over_the_limit_or_to_another_model_leaves_nothing_behind(llama: Path):
    plan = make_plan(TorchEngine("cpu", limit_bytes=1 << 28, threads=1), llama, ranges([(0, 2), (2, 8)]))
    engine = TorchEngine("cpu", limit_bytes=plan.stages[0].total_bytes, threads=1)
    larger = make_plan(engine, llama, ranges([(0, 6), (6, 8)]))
    with pytest.raises(OverLimitError) as refused:
        load(engine, llama, larger, 0, load(engine, llama, plan, 0))
    assert refused.value.present_bytes == engine.limit_bytes
    assert engine.used_bytes == 0
    other = msgspec.structs.replace(plan, model=msgspec.structs.replace(plan.model, digest="0" * 64))
    with pytest.raises(ModelError):
        load(engine, llama, other, 0, load(engine, llama, plan, 0))
    assert engine.used_bytes == 0


def test_a_stage_that_was_made_into_another_runs_no_step(engine: TorchEngine, llama: Path):
    plan = make_plan(engine, llama, 2)
    driver = Driver(engine, llama, plan)
    load(engine, llama, plan, 0, driver.stages[0])
    with pytest.raises(VramancerError, match="unloaded"):
        logits(driver)
