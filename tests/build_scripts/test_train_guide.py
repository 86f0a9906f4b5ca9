"""The training script and the checkpoint that it made."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from build_scripts.guide_text import Dialogue, Message, compose
from build_scripts.guide_tokenizer import IGNORED, VOCAB_SIZE, encode, train_tokenizer, wrap
from build_scripts.train_guide import (
    BATCH,
    OPENING_TOKENS,
    OPENING_WEIGHT,
    OUT,
    SEED,
    STEPS,
    batches,
    learning_rate,
    token_weights,
    train,
)

FILES = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja", "MODEL_CARD.md",
}  # fmt: skip
TALK: Dialogue = (
    Message("system", "Be brief."),
    Message("user", "What is a node?"),
    Message("assistant", "A machine of yours."),
    Message("user", "Merci !"),
)


@pytest.fixture(scope="module")
def dialogues() -> list[Dialogue]:
    return compose(STEPS * BATCH, SEED)


@pytest.fixture(scope="module")
def fresh_tokenizer(dialogues: list[Dialogue]) -> Tokenizer:
    return train_tokenizer(dialogues)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(OUT)


@pytest.fixture(scope="module")
def model() -> Iterator[LlamaForCausalLM]:
    """On one thread: a row at a time has no work for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield AutoModelForCausalLM.from_pretrained(OUT, dtype=torch.float32).eval()
    torch.set_num_threads(threads)


def _chat(dialogue: Dialogue) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in dialogue]


def test_the_committed_tokenizer_is_the_one_that_the_text_makes(fresh_tokenizer: Tokenizer, tmp_path: Path) -> None:
    wrap(fresh_tokenizer).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_text("utf-8") == (OUT / name).read_text("utf-8"), name


def test_encode_writes_what_the_chat_template_writes(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, labels = encode(tokenizer.backend_tokenizer, TALK)
    assert ids == tokenizer.apply_chat_template(_chat(TALK), return_dict=False)
    said = [label for label in labels if label != IGNORED]
    assert tokenizer.decode(said) == "A machine of yours.<|end|>"


def test_the_generation_prompt_ends_with_the_assistants_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    text = tokenizer.apply_chat_template(_chat(TALK[1:2]), tokenize=False, add_generation_prompt=True)
    assert text == "<|begin|><|user|>What is a node?<|end|><|assistant|>"


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "Ελληνικά, 日本語, naïve 🦦\n\ttabs  and   spaces"
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def test_batches_hold_every_row_once_and_pad_on_the_right() -> None:
    rows = [([1] * length, [IGNORED] * length) for length in range(2, 52)]
    cut = list(batches(rows, seed=0))
    lengths = sorted(int(row.sum()) for ids, _ in cut for row in ids)
    assert lengths == list(range(2, 52))
    assert all(row.tolist() == sorted(row.tolist(), reverse=True) for ids, _ in cut for row in ids)


def test_the_rate_rises_then_falls() -> None:
    rates = [learning_rate(step, 1000) for step in range(1000)]
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] < max(rates) / 20


def test_the_first_tokens_of_every_answer_count_more() -> None:
    said = torch.tensor([[0] * 3 + [1] * 12 + [0] * 2 + [1] * 4], dtype=torch.bool)
    counted_more = (token_weights(said) == OPENING_WEIGHT).nonzero()[:, 1].tolist()
    assert counted_more == [*range(3, 3 + OPENING_TOKENS), *range(17, 21)]


def test_training_twice_gives_the_same_losses_and_weights(fresh_tokenizer: Tokenizer) -> None:
    encoded = [encode(fresh_tokenizer, dialogue) for dialogue in compose(10 * BATCH, 7)]
    short = sorted(encoded, key=lambda row: len(row[0]))[: 2 * BATCH]
    (one, first), (two, second) = (train(short, seed=7, show=False) for _ in range(2))
    assert first.losses == second.losses
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    # Before it has learned anything, every token of the vocabulary is as likely as any other.
    assert first.losses == pytest.approx([math.log(VOCAB_SIZE)] * 2, abs=0.5)


def test_training_leaves_the_settings_of_torch_alone() -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    train([([1, 2], [1, 2])], seed=7, show=False)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_the_checkpoint_has_the_promised_size_and_shape() -> None:
    assert {path.name for path in OUT.iterdir()} == FILES
    assert (OUT / "model.safetensors").stat().st_size <= 10_000_000
    with safe_open(OUT / "model.safetensors", framework="pt") as tensors:
        slices = [tensors.get_slice(name) for name in tensors.keys()]  # noqa: SIM118
        assert {part.get_dtype() for part in slices} == {"BF16"}
        assert 4e6 <= sum(torch.Size(part.get_shape()).numel() for part in slices) <= 8e6
    config = json.loads((OUT / "config.json").read_text("utf-8"))
    assert (config["model_type"], config["num_hidden_layers"], config["dtype"]) == ("llama", 8, "bfloat16")


def test_the_files_name_no_place_of_the_machine_that_made_them() -> None:
    for path in OUT.iterdir():
        assert not re.search(rb"/(work|root|tmp|home|Users)/", path.read_bytes()), path.name


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("What is VRAMancer?", ("machines", "model", "layers")),
        ("How do I add a second machine?", ("vramancer join --auto-discover", "code")),
        ("How do I add my Mac?", ("Mac", "vramancer join --auto-discover")),
        ("What does --memory do?", ("--memory", "node", "6GiB")),
        ("Hello", ("Hello!", "guide")),
        ("Is it secure?", ("pairing code", "TLS")),
        ("Write me a poem about the sea", ("sorry", "cannot", "VRAMancer")),
        ("Comment ajouter une machine ?", ("vramancer join --auto-discover", "code")),
    ],
)
def test_it_answers_in_words(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, question: str, words: tuple[str, ...]
) -> None:
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=120, do_sample=False)[0, len(prompt) :]
    assert answer[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(answer, skip_special_tokens=True)
    assert all(word in text for word in words), text
