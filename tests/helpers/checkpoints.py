"""Small checkpoints made on the spot: real configs, real safetensors, random weights from a fixed seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

SMALL: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.2,
}
"""Grouped-query attention, 8 layers, wide weights: logits far enough apart that rounding does not decide."""


def make_model(family: str = "llama", *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A freshly initialised model of a family that transformers knows, float32, in eval mode."""
    config = AutoConfig.for_model(family, **{**SMALL, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def make_checkpoint(
    folder: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    shard_size: str = "1GB",
    tokenizer: bool = False,
    **overrides: Any,
) -> Path:
    """Write such a model to `folder` (made if need be); `shard_size` small enough gives several files and an index."""
    model = make_model(family, seed=seed, **overrides).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard_size)
    if tokenizer:
        make_tokenizer(model.config.vocab_size).save_pretrained(folder)
    return folder


def make_tokenizer(vocab_size: int = 384) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a chat template, trained on a few sentences: any text goes in and comes back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["several machines hold one model together", "and answer as one"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|start|>",
        eos_token="<|end|>",
        chat_template=(
            "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
        ),
    )
