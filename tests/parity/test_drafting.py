"""Guessed tokens change how many trips an answer takes, and nothing of the answer: tokens, log-probabilities, ends.

Grade "identical": float32 on the CPU, with the margins of `test_sampling`. The model is random and would repeat
nothing; so a bias leaves it five tokens to choose from, and much of what it says has been there before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.engine_bench import Answer, Ask, EngineBench
from tests.helpers.family_configs import tiny_config
from tests.helpers.family_matrix import stir
from tests.parity.test_sampling import assert_clear, assert_same
from vramancer_cli.models.readout import PromptReading
from vramancer_cli.models.sampling import Sampling

WORDS = (11, 23, 48, 95, 190)
BIAS = tuple((word, 60.0) for word in WORDS)


def prompt(number: int, length: int) -> tuple[int, ...]:
    """Five words in an order that repeats itself now and then."""
    return tuple(WORDS[(number + place * place // 3) % len(WORDS)] for place in range(length))


SAMPLINGS = [
    Sampling(0.0),
    Sampling(0.0, repetition_penalty=1.3),
    Sampling(0.0, frequency_penalty=2.0, top_logprobs=2),
    Sampling(0.0, frequency_penalty=1.1, presence_penalty=1.5, min_tokens=9),
    Sampling(1.0, seed=1, top_logprobs=3),
    Sampling(0.7, seed=2, top_p=0.9),
    Sampling(1.5, seed=3, repetition_penalty=1.2, presence_penalty=0.4),
    Sampling(0.4, seed=4, frequency_penalty=2.0, min_tokens=14),
    Sampling(2.0, seed=5, top_k=3, min_p=0.05),
]
ASKS = [
    Ask(prompt(number, 9 + 5 * number), replace(sampling, logit_bias=BIAS), 20 + number)
    for number, sampling in enumerate(SAMPLINGS)
] + [
    Ask(prompt(20, 40), Sampling(0.0, logit_bias=BIAS, top_logprobs=1), 18, reading=PromptReading(top_logprobs=1)),
    Ask(prompt(21, 50), max_tokens=0, reading=PromptReading(pooling="mean")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("drafted"))


@pytest.fixture(scope="module")
def asks(folder: Path) -> list[Ask]:
    """ASKS, and each once more with stop tokens: the one in the middle of its answer, which may come before."""
    plain = answers_alone(folder, ASKS)
    stopped = [
        replace(ask, stops=frozenset({answer.tokens[len(answer.tokens) // 2]}))
        for ask, answer in zip(ASKS, plain, strict=True)
        if answer.tokens
    ]
    return ASKS + stopped


@pytest.fixture(scope="module")
def alone(folder: Path, asks: list[Ask]) -> list[Answer]:
    return answers_alone(folder, asks)


def answers_alone(folder: Path, asks: Sequence[Ask]) -> list[Answer]:
    """Each by itself, on one stage, token by token."""
    bench = EngineBench(folder, 1, prefix_cache=False)
    answers = [bench.answer([ask])[0] for ask in asks]
    bench.close()
    assert bench.trips > 0 == bench.drafted
    return answers


@pytest.fixture(params=[(1, 16), (2, 3), (3, 1), (3, None)], ids=lambda pair: f"{pair[0]} stages, {pair[1]}")
def bench(folder: Path, request: pytest.FixtureRequest) -> Iterator[EngineBench]:
    stages, draft = request.param
    bench = EngineBench(folder, stages, draft=draft)
    yield bench
    bench.close()
    assert bench.engine.used_bytes == 0


def assert_drafted(bench: EngineBench) -> None:
    """Guesses were made, and both kinds of outcome seen."""
    assert 0 < bench.right < bench.drafted


@pytest.mark.parametrize("joins_every", [0, 2])
def test_a_mixed_batch_with_drafts_over_any_cut_gives_what_each_gets_alone_without(
    bench: EngineBench, asks: list[Ask], alone: list[Answer], joins_every: int
) -> None:
    together = bench.answer(asks, joins_every=joins_every)
    assert_drafted(bench)
    assert {answer.finish_reason for answer in alone} == {"stop", "length"}
    for ask, answer, expected in zip(asks, together, alone, strict=True):
        assert_clear(ask, answer)
        assert_same(answer, expected)


def test_each_alone_gives_the_same_with_drafts(folder: Path, asks: list[Ask], alone: list[Answer]) -> None:
    bench = EngineBench(folder, 1, draft=7)
    for ask, expected in zip(asks, alone, strict=True):
        [answer] = bench.answer([ask])
        assert_same(answer, expected)
    bench.close()
    assert_drafted(bench)


def test_choices_of_one_prompt_go_their_own_ways(bench: EngineBench, folder: Path) -> None:
    asks = [Ask(prompt(30, 27), Sampling(1.5, seed=50 + n, logit_bias=BIAS), 16) for n in range(4)]
    together = bench.answer(asks)
    assert bench.copies and len({tuple(answer.tokens) for answer in together}) > 1
    assert_drafted(bench)
    for ask, answer, expected in zip(asks, together, answers_alone(folder, asks), strict=True):
        assert_clear(ask, answer)
        assert_same(answer, expected)


def test_sequences_that_are_thrown_out_go_on_with_drafts(folder: Path, alone: list[Answer]) -> None:
    bench = EngineBench(folder, 2, max_step_tokens=24, block_count=18, draft=5)
    chosen = [3, 4, 6, 7]
    answers = bench.answer([ASKS[number] for number in chosen])
    bench.close()
    assert bench.preemptions
    assert_drafted(bench)
    for number, answer in zip(chosen, answers, strict=True):
        assert_same(answer, alone[number])


def test_what_is_kept_of_an_answer_is_what_was_said_and_never_what_was_guessed(folder: Path) -> None:
    """The same conversation goes on from kept blocks, and from none: the cache holds the same."""
    first = Ask(prompt(40, 30), Sampling(1.5, seed=8, logit_bias=BIAS), 40)
    bench = EngineBench(folder, 2, draft=6, block_tokens=4)
    [answer] = bench.answer([first])
    assert_drafted(bench)
    follow = Ask((*first.prompt, *answer.tokens, 7, 9), Sampling(0.0, top_logprobs=3), 8)
    [kept] = bench.answer([follow])
    bench.close()
    assert bench.scheduler.reused_tokens >= len(first.prompt) + len(answer.tokens) - 4
    assert_clear(follow, kept)
    [expected] = answers_alone(folder, [follow])
    assert_same(kept, expected)


@pytest.mark.parametrize("family", ["gemma3_text", "deepseek_v32"])
def test_windows_and_caches_of_a_familys_own_are_taken_back(family: str, tmp_path: Path) -> None:
    """Sliding windows in a cache group of their own; an indexer's keys, row by row."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.float32)
    stir(model)
    model.save_pretrained(tmp_path)
    words = tuple((word, 60.0) for word in (*WORDS[:4], 130))
    samplings = [Sampling(heat, seed=seed, logit_bias=words) for seed, heat in enumerate((0.0, 1.0, 0.7))]
    asks = [
        Ask(tuple(word % 100 for word in prompt(n, 33 + 9 * n)), sampling, 24) for n, sampling in enumerate(samplings)
    ]
    answers: dict[int, list[Answer]] = {}
    for draft in (0, 5):
        bench = EngineBench(tmp_path, 2, draft=draft, block_tokens=4, block_count=300, clearances=not draft)
        answers[draft] = bench.answer(asks)
        bench.close()
    for ask, expected, answer in zip(asks, *answers.values(), strict=True):
        assert_clear(ask, expected)
        assert_same(answer, expected)
    assert_drafted(bench)


def test_what_is_drawn_with_drafts_is_distributed_as_the_model_says(tmp_path: Path) -> None:
    """Three tokens each of 800 seeds, against the model's own probabilities: Pearson's chi-square."""
    folder, words, count = make_checkpoint(tmp_path, num_hidden_layers=2), WORDS[:2], 800
    bias = tuple((word, 60.0) for word in words)
    start = tuple(words[place * place % 3 % 2] for place in range(24))
    bench = EngineBench(folder, 1, draft=2, clearances=False)
    asks = [Ask(start, Sampling(2.5, seed=seed, logit_bias=bias), 3) for seed in range(count)]
    seen = Counter(
        tuple(answer.tokens) for first in range(0, count, 100) for answer in bench.answer(asks[first:][:100])
    )
    bench.close()
    assert_drafted(bench)
    shares = joint_shares(folder, start, words, temperature=2.5)
    assert seen.keys() <= shares.keys() and min(shares.values()) * count > 5
    chi_square = sum((seen[outcome] - count * share) ** 2 / (count * share) for outcome, share in shares.items())
    assert chi_square < 24.32, "7 degrees of freedom: beyond this once in a thousand"


def joint_shares(
    folder: Path, start: tuple[int, ...], words: tuple[int, ...], temperature: float
) -> dict[tuple[int, ...], float]:
    """How likely each sequence of three of these words is, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    shares: dict[tuple[int, ...], float] = {}
    for outcome in product(words, repeat=3):
        with torch.inference_mode():
            logits = model(torch.tensor([[*start, *outcome]])).logits[0, len(start) - 1 : -1]
        chances = torch.softmax(logits[:, list(words)].double() / temperature, -1)
        shares[outcome] = float(torch.stack([chances[n, words.index(word)] for n, word in enumerate(outcome)]).prod())
    return shares
