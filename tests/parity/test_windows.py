"""Grade "identical": layers that look back one window hold one window, and answer what transformers answers.

Float32; the two best logits of every token drawn are more than 1e-3 apart, so that rounding did not decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, GptOssConfig, MistralConfig, PreTrainedModel

from tests.helpers.engine_bench import Answer, Ask, EngineBench
from tests.helpers.family_matrix import stir
from tests.helpers.greedy import greedy
from tests.helpers.stepping import Driver, Request, make_plan
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.models.cache_window import most_held_blocks
from vramancer_cli.models.readout import NO_READING, PromptReading

TOLERANCE = 1e-4
MARGIN = 1e-3
WINDOW = 12
BLOCK_TOKENS = 8
CHUNK_TOKENS = 20
COUNT = 40
LENGTHS = (90, 61)
MOST_HELD = most_held_blocks(WINDOW, CHUNK_TOKENS, BLOCK_TOKENS)
SIZES: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 16, "max_position_embeddings": 256, "sliding_window": WINDOW, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
FIVE_TO_ONE = ["sliding_attention"] * 5 + ["full_attention"]
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
CONFIGS = {
    "gemma3": Gemma3TextConfig(**SIZES, num_hidden_layers=6, layer_types=FIVE_TO_ONE),
    "gpt_oss": GptOssConfig(
        **SIZES, num_hidden_layers=4, num_local_experts=4, num_experts_per_tok=2, rope_parameters=ROPE
    ),
    "mistral": MistralConfig(**SIZES, num_hidden_layers=4),
}
SEEDS = {"gemma3": 0, "gpt_oss": 6, "mistral": 0}
"""Those whose answers rounding cannot decide."""


def prompt(length: int) -> list[int]:
    return [(29 * k * k + 7 * k + length) % 128 for k in range(length)]


@pytest.fixture(scope="module", params=CONFIGS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(SEEDS[request.param])
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param], dtype=torch.float32)
    stir(model)
    model.save_pretrained(folder)
    return folder, request.param


@pytest.fixture(scope="module")
def folder(checkpoint: tuple[Path, str]) -> Path:
    return checkpoint[0]


@pytest.fixture(scope="module")
def reference(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def expected(reference: PreTrainedModel) -> list[list[int]]:
    """What transformers answers to each prompt alone."""
    answers = [greedy(reference, prompt(length), COUNT) for length in LENGTHS]
    assert min(margin for _, margin in answers) > MARGIN
    return [text for text, _ in answers]


def test_logits_are_those_of_transformers_while_a_window_is_all_that_is_held(
    folder: Path, reference: PreTrainedModel, expected: list[list[int]]
) -> None:
    engine = TorchEngine("cpu", limit_bytes=1 << 29, threads=1)
    plan = make_plan(engine, folder, 2, max_step_tokens=CHUNK_TOKENS, block_tokens=BLOCK_TOKENS, sequences=2)
    requests = [Request(prompt(length), COUNT, joins_at=index) for index, length in enumerate(LENGTHS)]
    with closing(Driver(engine, folder, plan)) as driver:
        driver.run(requests)
        [whole, window] = driver.most_held
    assert [request.generated for request in requests] == expected
    for request in requests:
        tokens = torch.tensor([request.prompt + request.generated[:-1]])
        with torch.inference_mode():
            logits = reference(input_ids=tokens, use_cache=False).logits[0, len(request.prompt) - 1 :]
        assert float((torch.stack(request.logits) - logits).abs().max()) < TOLERANCE
    assert whole == -(-(LENGTHS[0] + COUNT - 1) // BLOCK_TOKENS)
    assert MOST_HELD - 2 <= window <= MOST_HELD < whole / 2


def test_a_plan_with_window_groups_takes_fewer_bytes(folder: Path) -> None:
    engine = TorchEngine("cpu", limit_bytes=1 << 29, threads=1)
    plans = [make_plan(engine, folder, 1, block_count=600, sequences=2, windowed=flag) for flag in (True, False)]
    held: list[int] = []
    for plan in plans:
        with closing(engine.load_stage(folder, plan, 0, lambda *_: None)) as stage:
            assert stage.kv_bytes == plan.stages[0].kv_bytes
            held.append(engine.used_bytes)
    assert held[1] - held[0] == plans[1].stages[0].kv_bytes - plans[0].stages[0].kv_bytes > held[1] / 3


# --- what is shared --------------------------------------------------------------------------------------------------


@contextmanager
def served(folder: Path, *, sequences: int = 16) -> Iterator[EngineBench]:
    bench = EngineBench(
        folder, 2, max_step_tokens=CHUNK_TOKENS, block_tokens=BLOCK_TOKENS, block_count=90, sequences=sequences
    )
    with closing(bench):
        yield bench
    assert bench.engine.used_bytes == 0


def ask(length: int, reading: PromptReading = NO_READING) -> Ask:
    return Ask(tuple(prompt(length)), max_tokens=COUNT, reading=reading)


def check(answers: list[Answer], expected: list[list[int]]) -> None:
    assert [answer.tokens for answer in answers] == expected
    assert min(clearance for answer in answers for clearance in answer.clearances) > MARGIN


def test_a_prefix_is_found_again_where_its_last_window_is_still_kept(folder: Path, expected: list[list[int]]) -> None:
    with served(folder) as bench:
        for _ in range(2):
            check(bench.answer([ask(length) for length in LENGTHS]), expected)
        assert bench.scheduler.reused_tokens == sum(length // BLOCK_TOKENS * BLOCK_TOKENS for length in LENGTHS)


def test_a_prefix_whose_window_is_gone_is_computed_again(folder: Path, expected: list[list[int]]) -> None:
    with served(folder, sequences=1) as bench:
        for _ in range(2):
            check(bench.answer([ask(LENGTHS[0])]), expected[:1])
        assert bench.scheduler.reused_tokens < LENGTHS[0] // 2


def test_choices_are_forked_with_a_copy_in_every_group(folder: Path, expected: list[list[int]]) -> None:
    with served(folder) as bench:
        check(bench.answer([ask(LENGTHS[1])] * 3), [expected[1]] * 3)
        assert bench.copies == 2 * 2
        assert bench.computed_tokens == LENGTHS[1] + 2 + 3 * (COUNT - 1)


def test_windows_that_are_too_few_for_all_are_waited_for(folder: Path, expected: list[list[int]]) -> None:
    with served(folder, sequences=1) as bench:
        check(bench.answer([ask(length) for length in LENGTHS] * 2, joins_every=3), expected * 2)
