"""Grade "stable": keys and values in int8 give nearly the plain cache's logits; a request does not feel another."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.engine_bench import Answer, Ask, EngineBench
from tests.helpers.family_matrix import make_family
from tests.helpers.stepping import Driver, Request, make_plan, no_progress
from transport.types import CacheFormat
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.errors import ModelError

LENGTHS = (70, 45)
COUNT = 10
MARGIN = 1e-3


def prompt(length: int) -> list[int]:
    return [(29 * k * k + 7 * k + length) % 120 for k in range(length)]


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "llama":
        return make_checkpoint(folder, seed=1)
    make_family(folder, request.param, 0)
    return folder


def logits(folder: Path, kv_cache: CacheFormat, tokens: list[list[int]]) -> torch.Tensor:
    """[requests, vocabulary] after whole texts, in chunks, two stages, scattered blocks."""
    engine = TorchEngine("cpu", limit_bytes=1 << 29, threads=1)
    plan = make_plan(engine, folder, 2, max_step_tokens=20, block_tokens=8, sequences=2, kv_cache=kv_cache)
    requests = [Request(text, 1, joins_at=index) for index, text in enumerate(tokens)]
    with closing(Driver(engine, folder, plan)) as driver:
        assert [stage.kv_bytes for stage in driver.stages] == [placed.kv_bytes for placed in plan.stages]
        driver.run(requests)
    assert engine.used_bytes == 0
    return torch.stack([request.logits[0] for request in requests])


def test_logits_keep_their_direction_and_are_really_computed_from_rounded_keys(folder: Path) -> None:
    texts = [prompt(length) for length in LENGTHS]
    plain, rounded = (logits(folder, kv_cache, texts) for kv_cache in ("plain", "int8"))
    assert float(cosine_similarity(plain, rounded).min()) > 0.999
    assert not torch.equal(plain, rounded)


def answers(folder: Path, asks: list[Ask]) -> list[Answer]:
    bench = EngineBench(folder, 2, max_step_tokens=20, block_tokens=8, block_count=60, sequences=4, kv_cache="int8")
    with closing(bench):
        return bench.answer(asks, joins_every=2)


def test_forks_shared_prefixes_and_neighbours_change_no_text(folder: Path) -> None:
    asks = [Ask(tuple(prompt(length)), max_tokens=COUNT) for length in LENGTHS]
    alone = [answers(folder, [ask])[0] for ask in asks]
    assert min(clearance for answer in alone for clearance in answer.clearances) > MARGIN
    together = answers(folder, [*asks, *asks])
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone] * 2


def test_a_family_that_runs_row_by_row_is_refused(tmp_path: Path) -> None:
    make_family(tmp_path, "deepseek_v32", 0)
    engine = TorchEngine("cpu", limit_bytes=1 << 29, threads=1)
    plan = make_plan(engine, tmp_path, 1, kv_cache="int8")
    with pytest.raises(ModelError, match="cannot be rounded"):
        engine.load_stage(tmp_path, plan, 0, no_progress)
    facts = engine.model_facts(tmp_path, plan.model)
    facts.check_cache("plain")
    with pytest.raises(ModelError, match="'deepseek_v32' models keep each sequence's cache"):
        facts.check_cache("int8")
