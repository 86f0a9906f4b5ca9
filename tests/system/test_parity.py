"""What real nodes serve is what transformers writes: greedy, float32, with the margin asserted (grade: identical).

The stages' own parity, at every cut, is in tests/parity; here scheduler, wire and processes are in between.
"""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from build_scripts.local_cluster import LocalCluster, local_cluster
from tests.helpers.checkpoints import make_checkpoint
from vramancer_cli.models.catalog import BUILTIN_NAME, builtin_folder

MARGIN = 1e-3
REQUESTS = 16
NEW_TOKENS = 24
VOCABULARY = 280


def references(folder: Path, prompts: list[list[int]]) -> tuple[list[str], list[bool]]:
    """transformers' greedy continuations as text, and whether the top two logits were apart at every step of each."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts: list[str] = []
    clear: list[bool] = []
    for prompt in prompts:
        with torch.inference_mode():
            made = model.generate(
                torch.tensor([prompt]),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                output_logits=True,
                return_dict_in_generate=True,
            )
        top = torch.cat(made.logits).topk(2).values
        clear.append(bool(((top[:, 0] - top[:, 1]) > MARGIN).all()))
        texts.append(tokenizer.decode(made.sequences[0, len(prompt) :], skip_special_tokens=True))
    return texts, clear


def served(cluster: LocalCluster, model: str, prompts: list[list[int]], spread_s: float) -> list[str]:
    """The cluster's answers to all prompts, asked at different times within `spread_s`."""
    client = OpenAI(base_url=f"{cluster.head.api_url}/v1", api_key="none", max_retries=0, timeout=60)
    texts = [""] * len(prompts)
    rng = random.Random(1)
    delays = [rng.random() * spread_s for _ in prompts]

    def ask(number: int) -> None:
        time.sleep(delays[number])
        answer = client.completions.create(
            model=model, prompt=prompts[number], temperature=0, max_tokens=NEW_TOKENS, stream=number % 2 == 0
        )
        pieces = [answer] if number % 2 else list(answer)
        texts[number] = "".join(piece.choices[0].text for piece in pieces if piece.choices)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return texts


def test_the_built_in_model_over_three_nodes(three_nodes: LocalCluster) -> None:
    tokenizer = AutoTokenizer.from_pretrained(builtin_folder())
    topics = ["--memory", "--context", "a worker", "the head", "Windows", "a code", "the page", "chat"]
    questions = [f"{ask} {topic}?" for topic in topics for ask in ("What is", "How do I use")]
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in questions[:REQUESTS]
    ]
    expected, clear = references(builtin_folder(), prompts)
    assert all(clear)
    assert served(three_nodes, BUILTIN_NAME, prompts[:1], 0.0) == expected[:1]
    assert served(three_nodes, BUILTIN_NAME, prompts, 1.0) == expected


def test_a_fresh_llama_folder_over_two_nodes(tmp_path: Path) -> None:
    folder = make_checkpoint(
        tmp_path / "fresh",
        tokenizer=True,
        vocab_size=VOCABULARY,
        eos_token_id=1,
        shard_size="200KB",
    )
    rng = random.Random(3)
    # Random tokens are often half a character; a letter at the end lets the answer begin with a whole one.
    letter = AutoTokenizer.from_pretrained(folder).encode("x")
    drawn = [[rng.randrange(2, VOCABULARY) for _ in range(rng.randrange(100))] + letter for _ in range(REQUESTS + 8)]
    texts, clear = references(folder, drawn)
    # With random weights two logits come close now and then; where they do, rounding may decide: not a test of us.
    chosen = [number for number in range(len(drawn)) if clear[number]][:REQUESTS]
    assert len(chosen) == REQUESTS
    prompts, expected = [drawn[n] for n in chosen], [texts[n] for n in chosen]
    with local_cluster(tmp_path) as cluster:
        cluster.start_head("--model", str(folder), "--prefer", "room")
        cluster.add_worker()
        cluster.wait_ready(2)
        assert served(cluster, "fresh", prompts, 1.0) == expected
