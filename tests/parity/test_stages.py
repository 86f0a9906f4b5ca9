"""Grade "identical": greedy text over any number of stages is the text of transformers.generate, in float32.

A margin of more than 1e-3 between the two best logits at every step shows that rounding did not decide.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.stepping import Driver, Request, make_plan
from vramancer_cli.engine.torch_engine import TorchEngine

MARGIN = 1e-3
GUIDE = Path(__file__).parents[2] / "vramancer_cli" / "models" / "guide"


QUESTIONS = [
    "How do I start?", "What is VRAMancer?", "How do I join another machine?", "Who are you?", "What is a shard?",
    "Can I use an old laptop together with a computer that has a good graphics card?", "What is the pairing code for?",
    "How do I stop it?", "Is it secure?", "What happens when a machine is lost in the middle of an answer?", "Hello!",
    "Which layers does a node hold, and who decides that?", "How much memory do I need?", "Why is it slow?",
    "Does it work on Windows and on a Mac as well as on Linux?", "Thank you",
]  # fmt: skip
"""For the built-in model: sixteen prompts of different lengths."""


def sixteen(prompts: list[list[int]]) -> list[Request]:
    """Requests that join at different steps and end at different ones."""
    return [Request(prompt, 8 + i % 4, joins_at=i * 2 // 3) for i, prompt in enumerate(prompts)]


def generate(folder: Path, requests: list[Request]) -> list[list[int]]:
    """What transformers answers to each alone, in float32; end-of-text tokens are tokens like any other."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    texts: list[list[int]] = []
    for request in requests:
        ids = torch.tensor([request.prompt])
        wanted = {"max_new_tokens": request.max_tokens, "do_sample": False, "pad_token_id": 0}
        output = model.generate(ids, attention_mask=torch.ones_like(ids), **wanted)
        texts.append(output[0, len(request.prompt) :].tolist())
    return texts


def answer(folder: Path, stages: int, requests: list[Request]) -> None:
    """Prompts in chunks of at most 48 tokens, mixed with decoding; block tables mostly not consecutive."""
    engine = TorchEngine("cpu", limit_bytes=1 << 29, threads=1)
    plan = make_plan(engine, folder, stages, max_step_tokens=48, block_tokens=8, block_count=220)
    driver = Driver(engine, folder, plan)
    driver.run(requests)
    driver.close()
    layers = plan.stages[-1].layers.end
    assert engine.layer_tokens == layers * sum(len(r.prompt) + r.max_tokens - 1 for r in requests)
    assert engine.used_bytes == 0


def check(requests: list[Request], expected: list[list[int]]) -> None:
    assert [request.generated for request in requests] == expected
    assert min(margin for request in requests for margin in request.margins) > MARGIN


@dataclass(frozen=True)
class Case:
    """A checkpoint, sixteen prompts, and the texts that transformers gives for them."""

    folder: Path
    prompts: list[list[int]]
    expected: list[list[int]]

    def requests(self) -> list[Request]:
        return sixteen(self.prompts)


@pytest.fixture(scope="module", params=["tied", "untied", "guide"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if request.param == "guide":
        folder, prompts = GUIDE, guide_prompts()
    else:
        folder = make_checkpoint(tmp_path_factory.mktemp(request.param), tie_word_embeddings=request.param == "tied")
        prompts = [[(37 * i + 11 * k * k + k) % 384 for k in range(1 + 5 * i)] for i in range(16)]
    return Case(folder, prompts, generate(folder, sixteen(prompts)))


def guide_prompts() -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(GUIDE)
    messages = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("stages", [1, 2, 3, 8])
def test_sixteen_requests_in_ragged_batches_get_the_text_of_generate(case: Case, stages: int):
    requests = case.requests()
    answer(case.folder, stages, requests)
    check(requests, case.expected)


@pytest.mark.parametrize("stages", [1, 2, 3, 8])
def test_one_request_alone_gets_the_text_of_generate(case: Case, stages: int):
    alone = case.requests()[13]
    answer(case.folder, stages, [alone])
    check([alone], case.expected[13:14])


FAMILIES: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 20},
    "qwen2": {},
    "qwen3": {"head_dim": 16, "seed": 2},
    "phi3": {},
    "gemma2": {"head_dim": 16, "sliding_window": 16},
    "gpt_oss": {"head_dim": 16, "sliding_window": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_run_split_with_no_code_of_their_own(tmp_path: Path, family: str):
    folder = make_checkpoint(tmp_path, family, num_hidden_layers=4, **FAMILIES[family])
    requests = [Request(list(range(5 + i, 45 + 3 * i)), 8, joins_at=i) for i in range(3)]
    answer(folder, 3, requests)
    check(requests, generate(folder, requests))
