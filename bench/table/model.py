"""The models that are measured: Llamas with random weights and a tokenizer, made on the spot and kept.

The same seed gives the same weights. What they say means nothing, and never ends: there is no end token.
"""

from __future__ import annotations

import itertools
import json
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

SEED: Final = 0
INITIAL_RANGE: Final = 0.02
ROPE_THETA: Final = 10000.0
_TENSORS_PER_FILE: Final = 64


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes. `name` is that of its folder."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int = 32000
    context_tokens: int = 16384

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.mlp,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.context_tokens,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            dtype="bfloat16",
        )

    @property
    def matrix_weights(self) -> int:
        """Of the layers' matrices, which every token is multiplied by; without embedding and output head."""
        kv = self.hidden * self.kv_heads // self.heads
        return self.layers * self.hidden * (2 * self.hidden + 2 * kv + 3 * self.mlp)

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocabulary


BIG: Final = Shape("llama-1b", 2048, 16, 32, 8, 8192)
"""1.1 billion weights."""
SMALL: Final = Shape("llama-60m", 512, 16, 8, 4, 2048)
"""As deep as the big one, for what would take too long with that: many stages, slow links."""
EIGHT_B: Final = Shape("llama-8b", 4096, 32, 32, 8, 14336, 128256)
"""For accelerators."""


def checkpoint(shape: Shape, work: Path) -> Path:
    """The folder of the model, made unless it is there: config.json, tokenizer and safetensors in bfloat16."""
    folder = work / shape.name
    if not (folder / "made").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        _write_weights(shape, folder)
        shape.config().save_pretrained(folder)
        tokenizer(shape.vocabulary).save_pretrained(folder)
        (folder / "made").touch()
    return folder


def _write_weights(shape: Shape, folder: Path) -> None:
    weight_map: dict[str, str] = {}
    sizes = list(tensor_sizes(shape).items())
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        for start in range(0, len(sizes), _TENSORS_PER_FILE):
            part, file = sizes[start : start + _TENSORS_PER_FILE], f"model-{start:05d}.safetensors"
            save_file({name: _values(size) for name, size in part}, folder / file, {"format": "pt"})
            weight_map |= {name: file for name, _ in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def tensor_sizes(shape: Shape) -> dict[str, torch.Size]:
    """Name -> size of every tensor, as transformers names them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape.config())
    return {name: weight.shape for name, weight in model.state_dict().items()}


def _values(size: torch.Size) -> torch.Tensor:
    """Norms are ones, as a fresh model has them."""
    if len(size) == 1:
        return torch.ones(size, dtype=torch.bfloat16)
    return torch.empty(size, dtype=torch.bfloat16).normal_(std=INITIAL_RANGE)


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over printable ASCII, so that every token is text by itself, whichever come together.

    The first are single characters, the others runs of two, three and four lower-case letters.
    """
    tokens = list(itertools.islice(_tokens(), vocabulary))
    merges = [(token[:-1], token[-1]) for token in tokens if len(token) > 1]
    made = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False)


def _tokens() -> Iterator[str]:
    yield from string.ascii_letters + string.digits + string.punctuation + "Ġ"  # which stands for a space
    for length in (2, 3, 4):
        yield from map("".join, itertools.product(string.ascii_lowercase, repeat=length))
