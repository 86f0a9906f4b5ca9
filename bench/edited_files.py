"""Small files of this repository, an edited version of each, and a model that knows the edited ones by heart.

No model small enough for this bench can edit a file. So a tiny Llama is trained until it answers each file with its
edited version, token by token: what it says then is what an editing model would say, at the cost of its own layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vramancer_cli.serving.text import TextTools

ROOT: Final = Path(__file__).parents[1]
ASK: Final = "\n# The same, edited:\n"
MOST_STEPS: Final = 400
Edit = tuple[str, str]
"""What stands there, and what comes in its place, everywhere."""

EDITS: Final[dict[str, tuple[Edit, ...]]] = {
    "vramancer_cli/scheduling/digests.py": (("previous", "before"), ("digest_size=32", "digest_size=64")),
    "vramancer_cli/runtime/registry.py": (("name", "wanted"), ("return", "# Found or not.\n        return")),
}


@dataclass(frozen=True, slots=True)
class EditedFile:
    """A file with the request to edit it, and its edited version, in token ids."""

    name: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def edited_files(tools: TextTools) -> list[EditedFile]:
    return [_edited(path, edits, tools) for path, edits in EDITS.items()]


def _edited(path: str, edits: Sequence[Edit], tools: TextTools) -> EditedFile:
    before = after = (ROOT / path).read_text("utf-8")
    for old, new in edits:
        after = after.replace(old, new)
    return EditedFile(path, tools.encode(before + ASK), tools.encode(after))


def teach(files: Sequence[EditedFile], vocab_size: int, folder: Path) -> None:
    """Write a model that answers each prompt greedily with its answer. Raises RuntimeError if it does not learn it."""
    torch.manual_seed(0)
    longest = max(len(file.prompt) + len(file.answer) for file in files)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=longest + 64,
        tie_word_embeddings=True,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    ids, labels = _batch(files, longest)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(MOST_STEPS):
        logits = model(ids).logits[:, :-1]
        if _knows(logits, labels):
            model.save_pretrained(folder)
            return
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    raise RuntimeError(f"The model did not learn the files in {MOST_STEPS} steps.")


def _batch(files: Sequence[EditedFile], longest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """[files, longest] token ids, and what follows each of their tokens: -100 where nothing is to be learnt."""
    ids = torch.zeros(len(files), longest, dtype=torch.int64)
    labels = torch.full((len(files), longest - 1), -100)
    for row, file in enumerate(files):
        tokens = torch.tensor([*file.prompt, *file.answer])
        ids[row, : len(tokens)] = tokens
        labels[row, len(file.prompt) - 1 : len(tokens) - 1] = tokens[len(file.prompt) :]
    return ids, labels


def _knows(logits: torch.Tensor, labels: torch.Tensor) -> bool:
    """Surely: every token is twice as likely as any other, so that rounding cannot change the text."""
    best = logits.topk(2).values
    wanted = labels != -100
    right = logits.argmax(-1)[wanted] == labels[wanted]
    return bool(right.all()) and bool(((best[..., 0] - best[..., 1])[wanted] > 0.7).all())
