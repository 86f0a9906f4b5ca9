"""What requests get depends neither on what else is in the batch nor on the cuts: texts, log-probabilities, embeddings.

Grade "identical": float32 on the CPU. Every choice is asserted to be further from another one than rounding reaches:
greedy by 1e-3 between the two best logits, drawn by 1e-5 of all shares between the draw and the next border.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.generation import logits_process as reference

from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.engine_bench import Answer, Ask, EngineBench
from vramancer_cli.engine.sampler import uniform
from vramancer_cli.models.catalog import builtin_folder
from vramancer_cli.models.readout import PromptReading
from vramancer_cli.models.sampling import Draw, Sampling

GREEDY_MARGIN = 1e-3
DRAWN_MARGIN = 1e-5
TOLERANCE = 1e-4


def prompt(number: int, length: int) -> tuple[int, ...]:
    return tuple((37 * number + 11 * place * place + place) % 384 for place in range(length))


BIASES = ((5, 3.0), (250, -100.0), (17, 1.5))
SAMPLINGS = [
    Sampling(0.0),
    Sampling(1.0, seed=1),
    Sampling(0.7, top_p=0.9, seed=2),
    Sampling(1.3, top_k=20, seed=3),
    Sampling(0.0, repetition_penalty=1.3),
    Sampling(1.0, repetition_penalty=1.2, seed=4),
    Sampling(0.9, presence_penalty=0.8, frequency_penalty=0.5, seed=6),
    Sampling(0.0, frequency_penalty=1.5),
    Sampling(1.1, min_p=0.03, seed=6),
    Sampling(0.8, top_k=50, top_p=0.95, min_p=0.01, seed=7),
    Sampling(0.0, logit_bias=BIASES),
    Sampling(1.0, logit_bias=BIASES, top_logprobs=3, seed=8),
    Sampling(0.0, top_logprobs=0),
]
ASKS = [Ask(prompt(number, 3 + 7 * number), sampling, 14) for number, sampling in enumerate(SAMPLINGS)] + [
    Ask(prompt(30, 70), Sampling(0.0, top_logprobs=2), 6, reading=PromptReading(top_logprobs=2)),
    Ask(prompt(31, 55), max_tokens=0, reading=PromptReading(pooling="mean")),
    Ask(prompt(32, 60), max_tokens=0, reading=PromptReading(pooling="last")),
    Ask(prompt(33, 1), max_tokens=0, reading=PromptReading(top_logprobs=0)),
]
"""More than run at once, with prompts of one token and of several chunks, all kinds side by side."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("sampled"))


@pytest.fixture(scope="module")
def model(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[Answer]:
    """Each ask by itself, on one stage."""
    bench = EngineBench(folder, 1)
    answers = [bench.answer([ask])[0] for ask in ASKS]
    bench.close()
    return answers


@pytest.fixture(params=[1, 2, 3])
def bench(folder: Path, request: pytest.FixtureRequest) -> Iterator[EngineBench]:
    bench = EngineBench(folder, request.param)
    yield bench
    bench.close()
    assert bench.engine.used_bytes == 0


def assert_clear(ask: Ask, answer: Answer) -> None:
    margin = DRAWN_MARGIN if ask.sampling.temperature else GREEDY_MARGIN
    assert all(clearance > margin for clearance in answer.clearances), ask


def assert_same(answer: Answer, expected: Answer) -> None:
    assert (answer.tokens, answer.finish_reason) == (expected.tokens, expected.finish_reason)
    for one, other in ((answer.scores, expected.scores), (answer.prompt_scores, expected.prompt_scores)):
        assert [score.token for score in one] == [score.token for score in other]
        assert [s.logprob for s in one] == pytest.approx([s.logprob for s in other], abs=TOLERANCE)
        assert [[t for t, _ in s.top] for s in one] == [[t for t, _ in s.top] for s in other]
    assert answer.pooled == pytest.approx(expected.pooled, abs=1e-2, rel=1e-4)


@pytest.mark.parametrize("joins_every", [0, 2])
def test_a_mixed_batch_over_any_cut_gives_what_each_gets_alone(
    bench: EngineBench, alone: list[Answer], joins_every: int
) -> None:
    together = bench.answer(ASKS, joins_every=joins_every)
    for ask, answer, expected in zip(ASKS, together, alone, strict=True):
        assert_clear(ask, answer)
        assert_same(answer, expected)


def test_sequences_that_are_thrown_out_and_computed_again_draw_what_they_would_have_drawn(
    folder: Path, alone: list[Answer]
) -> None:
    bench = EngineBench(folder, 2, max_step_tokens=16, block_count=18)
    drawing = [3, 5, 6, 13]
    answers = bench.answer([ASKS[number] for number in drawing])
    computed = bench.engine.layer_tokens / 8
    bench.close()
    needed = sum(len(ASKS[number].prompt) + ASKS[number].max_tokens - 1 for number in drawing)
    assert computed > needed, "nobody was thrown out"
    for number, answer in zip(drawing, answers, strict=True):
        assert_same(answer, alone[number])


def test_answers_to_one_prompt_are_those_of_their_seeds_alone(bench: EngineBench) -> None:
    asks = [Ask(prompt(40, 30), Sampling(1.0, seed=20 + choice), 10) for choice in range(4)]
    together = bench.answer(asks)
    assert len({tuple(answer.tokens) for answer in together}) > 1
    for ask, answer in zip(asks, together, strict=True):
        assert_clear(ask, answer)
        assert_same(answer, bench.answer([ask])[0])


def drawn_by_transformers(model: torch.nn.Module, ask: Ask) -> list[int]:
    """The text by transformers' logits, processors and warpers, and by the draw's own number."""
    tokens = list(ask.prompt)
    for index in range(ask.max_tokens):
        with torch.inference_mode():
            scores = model(torch.tensor([tokens])).logits[:, -1]
        scores = processed(scores, torch.tensor([tokens]), tokens[len(ask.prompt) :], ask.sampling)
        if ask.sampling.temperature == 0:
            tokens.append(int(scores.argmax()))
            continue
        sums = warped(scores, ask.sampling).softmax(-1)[0].double().cumsum(0)
        tokens.append(int(torch.searchsorted(sums / sums[-1], uniform(Draw(ask.sampling, index)), right=True)))
    return tokens[len(ask.prompt) :]


def processed(scores: torch.Tensor, ids: torch.Tensor, generated: list[int], sampling: Sampling) -> torch.Tensor:
    if sampling.logit_bias:
        biases = [[[token], bias] for token, bias in sampling.logit_bias]
        scores = reference.SequenceBiasLogitsProcessor(biases)(ids, scores)
    if sampling.repetition_penalty != 1:
        scores = reference.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, scores)
    counts = torch.bincount(torch.tensor(generated, dtype=torch.int64), minlength=scores.shape[-1])
    return scores - counts * sampling.frequency_penalty - (counts > 0) * sampling.presence_penalty


def warped(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    none = torch.zeros(1, 0)
    scores = reference.TemperatureLogitsWarper(sampling.temperature)(none, scores)
    if sampling.top_k:
        scores = reference.TopKLogitsWarper(sampling.top_k)(none, scores)
    if sampling.top_p < 1:
        scores = reference.TopPLogitsWarper(sampling.top_p)(none, scores)
    return reference.MinPLogitsWarper(sampling.min_p)(none, scores) if sampling.min_p else scores


def test_every_text_is_the_one_of_transformers_logits_and_processors(
    model: torch.nn.Module, alone: list[Answer]
) -> None:
    for ask, answer in zip(ASKS, alone, strict=True):
        assert_clear(ask, answer)
        assert answer.tokens == drawn_by_transformers(model, ask), ask.sampling


def test_log_probabilities_are_those_of_the_whole_model(model: torch.nn.Module, alone: list[Answer]) -> None:
    ask, answer = next((a, b) for a, b in zip(ASKS, alone, strict=True) if a.reading.top_logprobs == 2)
    tokens = [*ask.prompt, *answer.tokens]
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(torch.tensor([tokens])).logits[0], -1)
    scores = [*answer.prompt_scores, *answer.scores]
    assert [score.token for score in scores] == tokens[1:]
    for place, score in enumerate(scores):
        best = logprobs[place].topk(2)
        assert score.logprob == pytest.approx(float(logprobs[place, score.token]), abs=TOLERANCE)
        assert [value for _, value in score.top] == pytest.approx(best.values.tolist(), abs=TOLERANCE)


@pytest.mark.parametrize("stages", [1, 3])
def test_embeddings_of_the_built_in_model_are_its_final_hidden_states(stages: int) -> None:
    folder = builtin_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    bench = EngineBench(folder, stages)
    ids = tuple(3 + number * 7 % 300 for number in range(90))
    mean, last = bench.answer(
        [Ask(ids, max_tokens=0, reading=PromptReading(pooling=pooling)) for pooling in ("mean", "last")]
    )
    bench.close()
    with torch.inference_mode():
        hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
    torch.testing.assert_close(torch.tensor(mean.pooled) / len(ids), hidden.mean(0), atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(torch.tensor(last.pooled), hidden[-1], atol=TOLERANCE, rtol=TOLERANCE)
