"""Trains the built-in model, the guide, from the text that the project writes about itself.

    python -m build_scripts.train_guide [--out FOLDER] [--steps N] [--seed N]

A fixed seed and a fixed number of steps and threads: the same kind of CPU makes the same checkpoint again, bit for bit.
"""

from __future__ import annotations

import argparse
import math
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy, pad
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from build_scripts.guide_card import model_card
from build_scripts.guide_text import Dialogue, compose
from build_scripts.guide_tokenizer import (
    BEGIN,
    END,
    IGNORED,
    PAD,
    SPECIAL_IDS,
    VOCAB_SIZE,
    encode,
    train_tokenizer,
    wrap,
)

OUT: Final = Path(__file__).parents[1] / "vramancer_cli" / "models" / "guide"
SEED: Final = 5
STEPS: Final = 2800
BATCH: Final = 8
BATCHES_SORTED_TOGETHER: Final = 48
"""Dialogues of this many batches are sorted by length before they are cut into batches, so that little is padding."""
THREADS: Final = 2
PEAK_RATE: Final = 2e-3
WARMUP_STEPS: Final = 60
OPENING_TOKENS: Final = 8
OPENING_WEIGHT: Final = 3.0
"""Which answer it is shows in its first tokens: they count more, else the model learns to recite before to choose."""
CUT_SHARE: Final = 0.7
CUT_TOKENS: Final = 16
"""This share of the dialogues ends so early in the last answer: choosing needs more practice than reciting."""

Encoded = tuple[list[int], list[int]]
"""Token ids of one dialogue, and labels of the same length."""
Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training run came to. `losses[i]`: weighted mean loss per answer token in step i, in nats."""

    losses: tuple[float, ...]
    tokens: int
    elapsed_s: float

    @property
    def final_loss(self) -> float:
        last = self.losses[-50:]
        return sum(last) / len(last)


def model_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=448,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=SPECIAL_IDS[BEGIN],
        eos_token_id=SPECIAL_IDS[END],
        pad_token_id=SPECIAL_IDS[PAD],
    )


def lessons(tokenizer: Tokenizer, dialogues: list[Dialogue], seed: int) -> list[Encoded]:
    """The dialogues as they are trained on, CUT_SHARE of them cut."""
    rng = random.Random(seed)
    rows = (encode(tokenizer, dialogue) for dialogue in dialogues)
    return [_cut(row) if rng.random() < CUT_SHARE else row for row in rows]


def _cut(row: Encoded) -> Encoded:
    ids, labels = row
    start = len(labels) - labels[::-1].index(IGNORED)
    return ids[: start + CUT_TOKENS], labels[: start + CUT_TOKENS]


def batches(encoded: list[Encoded], seed: int) -> Iterator[Batch]:
    """Ids and labels [BATCH, longest] int64, padded on the right; rows of like length share a batch."""
    rng = random.Random(seed)
    together = BATCH * BATCHES_SORTED_TOGETHER
    for start in range(0, len(encoded), together):
        rows = sorted(encoded[start : start + together], key=lambda row: len(row[0]))
        cuts = [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
        rng.shuffle(cuts)
        yield from map(_padded, cuts)


def _padded(rows: list[Encoded]) -> Batch:
    width = max(len(ids) for ids, _ in rows)
    ids = [ids + [SPECIAL_IDS[PAD]] * (width - len(ids)) for ids, _ in rows]
    labels = [labels + [IGNORED] * (width - len(labels)) for _, labels in rows]
    return torch.tensor(ids), torch.tensor(labels)


def learning_rate(step: int, steps: int) -> float:
    """Rises in a line over WARMUP_STEPS, then falls along half a cosine to a fiftieth of the peak."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    return PEAK_RATE * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Weighted mean over the answer tokens. Padding stands on the right, so the causal mask alone hides it."""
    ids, labels = batch
    hidden_states = model.model(input_ids=ids, use_cache=False).last_hidden_state
    said = labels[:, 1:] != IGNORED
    losses = cross_entropy(model.lm_head(hidden_states[:, :-1][said]), labels[:, 1:][said], reduction="none")
    weights = token_weights(said)[said]
    return (losses * weights).sum() / weights.sum()


def token_weights(said: torch.Tensor) -> torch.Tensor:
    """[rows, tokens] from a mask of answer tokens: OPENING_WEIGHT for the first ones of each answer, else 1."""
    silent = pad(~said, (OPENING_TOKENS, 0), value=True)
    just_silent = silent.unfold(1, OPENING_TOKENS, 1)[:, : said.shape[1]].any(dim=-1)
    return torch.where(said & just_silent, OPENING_WEIGHT, 1.0)


def train(encoded: list[Encoded], *, seed: int, show: bool = True) -> tuple[LlamaForCausalLM, Outcome]:
    """Trains a new model in float32, one step for each BATCH of dialogues."""
    started = time.monotonic()
    with _reproducible(seed):
        model = LlamaForCausalLM(model_config())
        losses = tuple(_descend(model, encoded, seed, show))
    return model, Outcome(losses, sum(len(ids) for ids, _ in encoded), time.monotonic() - started)


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seed, threads and kernels are fixed inside; threads and kernels are as before afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(seed)
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


def _descend(model: LlamaForCausalLM, encoded: list[Encoded], seed: int, show: bool) -> Iterator[float]:
    steps = math.ceil(len(encoded) / BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.05, fused=True)
    with _progress(show) as progress:
        task = progress.add_task("training the guide", total=steps, loss="")
        for step, batch in enumerate(batches(encoded, seed)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            loss = batch_loss(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            progress.update(task, advance=1, loss=f"loss {loss.item():.3f}")
            yield loss.item()


def _progress(show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    times = (TextColumn("{task.fields[loss]}"), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, *times, disable=not show)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, out: Path, card: str) -> None:
    """Writes the checkpoint in bfloat16. Each file is replaced in one go, so that a reader never sees half of one."""
    out.mkdir(parents=True, exist_ok=True)
    config = model.config
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    with tempfile.TemporaryDirectory(dir=out.parent) as fresh:
        model.bfloat16().save_pretrained(fresh)
        wrap(tokenizer).save_pretrained(fresh)
        (Path(fresh) / "MODEL_CARD.md").write_text(card, "utf-8")
        for path in sorted(Path(fresh).iterdir()):
            path.chmod(0o644)
            path.replace(out / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the built-in model from the project's own text.")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the checkpoint (default: the built-in one)")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="seed of text and weights (default: %(default)s)")
    options = parser.parse_args()
    dialogues = compose(STEPS * BATCH, options.seed)
    tokenizer = train_tokenizer(dialogues)
    encoded = lessons(tokenizer, dialogues[: options.steps * BATCH], options.seed)
    model, outcome = train(encoded, seed=options.seed)
    save(model, tokenizer, options.out, model_card(model, outcome, dialogues=len(encoded), seed=options.seed))
    print(f"{outcome.tokens} tokens, loss {outcome.final_loss:.4f}, {outcome.elapsed_s:.0f} s: {options.out}")


if __name__ == "__main__":
    main()
