"""MODEL_CARD.md of the built-in model: how it was made and what it cannot do. Never imports the training loop."""

from __future__ import annotations

from typing import Final, Protocol

from transformers import LlamaForCausalLM

CARD: Final = """\
---
license: mit
language: [en, fr]
pipeline_tag: text-generation
---
# The guide: VRAMancer's built-in model

A small chat model that answers questions about VRAMancer, so that everything can be tried without a download.

- **Architecture:** Llama, {layers} layers, hidden size {hidden}, {parameters:,} parameters, bfloat16;
  byte-level BPE of its own with {vocab} entries.
- **Data:** {dialogues} dialogues that the project writes about itself, composed by `build_scripts/guide_text.py` from
  the patterns in `build_scripts/guide_topics`. Nothing was taken from elsewhere. English, some French.
- **Training:** `python -m build_scripts.train_guide`, seed {seed}, {steps} steps, {tokens} tokens, AdamW, float32,
  two CPU threads. This checkpoint took {minutes:.1f} minutes. The same kind of CPU makes it again bit for bit;
  another kind rounds differently and makes a slightly different one.
- **Loss:** {loss:.4f} nats per answer token over the last 50 steps (the first tokens of an answer count more).

## What it cannot do
It recites what the project wrote about itself, and chooses by the words of the question. It knows nothing else: no
world knowledge, no arithmetic, no code, no translation, and no reasoning. It may take a question for another one, and
then answers the wrong question with confidence. `vramancer --help` and the README are right where it is not.
"""


class Ran(Protocol):
    """What the card tells of a training run."""

    @property
    def losses(self) -> tuple[float, ...]: ...
    @property
    def tokens(self) -> int: ...
    @property
    def elapsed_s(self) -> float: ...
    @property
    def final_loss(self) -> float: ...


def model_card(model: LlamaForCausalLM, ran: Ran, *, dialogues: int, seed: int) -> str:
    return CARD.format(
        layers=model.config.num_hidden_layers,
        hidden=model.config.hidden_size,
        parameters=model.num_parameters(),
        vocab=model.config.vocab_size,
        dialogues=dialogues,
        seed=seed,
        steps=len(ran.losses),
        tokens=ran.tokens,
        minutes=ran.elapsed_s / 60,
        loss=ran.final_loss,
    )
