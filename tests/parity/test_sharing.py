"""Grade "identical": what is shared between sequences, forked, or computed again after preemption changes no text.

Float32; the two best logits of every token drawn are more than 1e-3 apart, so that rounding did not decide.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.engine_bench import Answer, Ask, EngineBench
from vramancer_cli.models.readout import NO_READING, PromptReading

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


def greedy(prompt: Sequence[int], reading: PromptReading = NO_READING) -> Ask:
    return Ask(tuple(prompt), max_tokens=COUNT, reading=reading)


@contextmanager
def served(folder: Path, *, block_count: int = 120, prefix_cache: bool = True) -> Iterator[EngineBench]:
    bench = EngineBench(folder, 2, max_step_tokens=24, block_count=block_count, prefix_cache=prefix_cache)
    with closing(bench):
        yield bench
    assert bench.engine.used_bytes == 0


def check(answers: Sequence[Answer], expected: Sequence[list[int]]) -> None:
    assert [answer.tokens for answer in answers] == list(expected)
    assert min(clearance for answer in answers for clearance in answer.clearances) > MARGIN


def test_prompts_that_begin_alike_share_and_get_the_texts_that_they_get_alone(
    folder: Path, expected: list[list[int]]
) -> None:
    with served(folder) as bench:
        for _ in range(3):
            check(bench.answer([greedy(prompt) for prompt in PROMPTS]), expected)
    assert bench.scheduler.reused_tokens > 2 * sum(len(prompt) // 8 * 8 - 8 for prompt in PROMPTS)


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_choices_are_forked_and_go_their_own_ways(folder: Path, expected: list[list[int]], prefix_cache: bool) -> None:
    with served(folder, prefix_cache=prefix_cache) as bench:
        check(bench.answer([greedy(PROMPTS[2])] * 4), [expected[2]] * 4)
    assert bench.copies == 3
    assert bench.computed_tokens == len(PROMPTS[2]) + 3 + 4 * (COUNT - 1)


def test_preempted_sequences_go_on_where_they_were(folder: Path, expected: list[list[int]]) -> None:
    with served(folder, block_count=12) as bench:
        check(bench.answer([greedy(prompt) for prompt in PROMPTS[1:4]]), expected[1:4])
    assert bench.preemptions > 0


def test_a_prompt_is_read_wholly_though_it_is_cached(folder: Path, expected: list[list[int]]) -> None:
    with served(folder) as bench:
        first, second = (bench.answer([greedy(PROMPTS[2], PromptReading(top_logprobs=0))]) for _ in range(2))
        check(first + second, [expected[2]] * 2)
    assert len(first[0].prompt_scores) == len(PROMPTS[2]) - 1
    assert first[0].prompt_scores == second[0].prompt_scores
    assert bench.scheduler.reused_tokens == 0
