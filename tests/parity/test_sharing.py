"""Grade "identical": what is shared between sequences, forked, or computed again after preemption changes no text.

Float32; the two best logits of every token drawn are more than 1e-3 apart, so that rounding did not decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.scheduled_stages import ScheduledStages
from tests.helpers.stepping import make_plan
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.models.readout import PromptReading

MARGIN = 1e-3
OPENING = [(29 * k * k + 7 * k + 3) % 384 for k in range(37)]
PROMPTS = [
    OPENING[:length] + [(91 * i + k) % 384 for k in range(1 + i % 5)] for i, length in enumerate((0, 16, 37, 30, 37))
]
COUNT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), seed=1)


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[list[int]]:
    """What transformers answers to each prompt alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    texts: list[list[int]] = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=COUNT, do_sample=False, pad_token_id=0
        )
        texts.append(output[0, len(prompt) :].tolist())
    return texts


@pytest.fixture
def engine() -> Iterator[TorchEngine]:
    engine = TorchEngine("cpu", limit_bytes=1 << 29, threads=1)
    yield engine
    assert engine.used_bytes == 0


def served(engine: TorchEngine, folder: Path, *, block_count: int = 120, prefix_cache: bool = True) -> ScheduledStages:
    plan = make_plan(engine, folder, 2, max_step_tokens=24, block_tokens=8, block_count=block_count)
    return ScheduledStages(engine, folder, plan, prefix_cache=prefix_cache)


def test_prompts_that_begin_alike_share_and_get_the_texts_that_they_get_alone(
    engine: TorchEngine, folder: Path, expected: list[list[int]]
) -> None:
    cluster = served(engine, folder)
    for turn in range(3):
        for number, prompt in enumerate(PROMPTS):
            cluster.add(10 * turn + number, prompt, COUNT)
        cluster.run()
    cluster.close()
    assert [cluster.texts[10 * turn + number] for turn in range(3) for number in range(5)] == expected * 3
    assert cluster.margin > MARGIN
    assert cluster.scheduler.reused_tokens > 2 * sum(len(prompt) // 8 * 8 - 8 for prompt in PROMPTS)


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_choices_are_forked_and_go_their_own_ways(
    engine: TorchEngine, folder: Path, expected: list[list[int]], prefix_cache: bool
) -> None:
    cluster = served(engine, folder, prefix_cache=prefix_cache)
    for choice in range(4):
        cluster.add(choice, PROMPTS[2], COUNT)
    cluster.run()
    cluster.close()
    assert [cluster.texts[choice] for choice in range(4)] == [expected[2]] * 4
    assert cluster.margin > MARGIN
    assert cluster.copies == 3
    assert cluster.computed_tokens == len(PROMPTS[2]) + 3 + 4 * (COUNT - 1)


def test_preempted_sequences_go_on_where_they_were(
    engine: TorchEngine, folder: Path, expected: list[list[int]]
) -> None:
    cluster = served(engine, folder, block_count=12)
    for number in (1, 2, 3):
        cluster.add(number, PROMPTS[number], COUNT)
    cluster.run()
    cluster.close()
    assert cluster.preemptions > 0
    assert [cluster.texts[number] for number in (1, 2, 3)] == expected[1:4]
    assert cluster.margin > MARGIN


def test_a_prompt_is_read_wholly_though_it_is_cached(engine: TorchEngine, folder: Path) -> None:
    cluster = served(engine, folder)
    cluster.add(0, PROMPTS[2], 1, PromptReading(top_logprobs=0))
    cluster.run()
    cluster.add(1, PROMPTS[2], 1, PromptReading(top_logprobs=0))
    cluster.run()
    cluster.close()
    assert len(cluster.scores[0]) == len(PROMPTS[2]) - 1
    assert cluster.scores[0] == cluster.scores[1]
    assert cluster.scheduler.reused_tokens == 0
