"""`make quality`: what quantised weights cost in quality, measured; writes docs/quantisation.md.

    python -m build_scripts.quality [--out FILE]

Perplexity of the built-in model on dialogues that it was not trained on, and the direction of the logits of a Llama
with random weights. Exits with 1 where a figure misses its goal. Minutes on two cores.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from build_scripts.guide_text import Dialogue, Message, compose
from build_scripts.guide_tokenizer import IGNORED, encode
from build_scripts.quality_page import KernelError, Quality, page
from build_scripts.train_guide import BATCH, OUT, SEED, STEPS, Encoded
from transport.types import WeightFormat
from vramancer_cli.engine import architecture
from vramancer_cli.engine.quant import rounded_to
from vramancer_cli.engine.quant_choice import candidates
from vramancer_cli.engine.quant_head import quantisable_head, quantise_head
from vramancer_cli.engine.quant_layer import quantise_layer
from vramancer_cli.engine.weights import weights_bytes
from vramancer_cli.models.quantisation import INT4, INT8, INT8_GROUPED, Format, head_saved_bytes

PAGE: Final = Path(__file__).parents[1] / "docs" / "quantisation.md"
HELD_OUT_SEED: Final = 20_261_121
HELD_OUT_COUNT: Final = 300
FORMATS: Final[tuple[WeightFormat, ...]] = ("none", "int8", "int4", "int4-64", "int4-128")
HELD: Final = (INT8, INT8_GROUPED, INT4, Format(4, 64), Format(4, 128))
MOST_PERPLEXITY: Final = {"int8": 0.01, "int4": 0.03, "int4-64": 0.03, "int4-128": 0.03}
LEAST_COSINE: Final = {"int8": 0.998, "int4": 0.93}
"""Larger groups have no goal of their own: they trade quality for memory."""
_PROMPT_TOKENS: Final = 96
_KERNEL_ROWS: Final = 16


def held_out(count: int = HELD_OUT_COUNT) -> list[Dialogue]:
    """Dialogues of another seed, none of whose questions occurs letter by letter in the training text."""
    asked = {message.content for message in _questions(compose(STEPS * BATCH, SEED))}
    fresh = compose(6 * count, HELD_OUT_SEED)
    return [dialogue for dialogue in fresh if not any(m.content in asked for m in _questions([dialogue]))][:count]


def _questions(dialogues: Iterable[Dialogue]) -> list[Message]:
    return [message for dialogue in dialogues for message in dialogue if message.role == "user"]


@torch.inference_mode()
def perplexity(model: PreTrainedModel, rows: Sequence[Encoded], *, answers_only: bool) -> float:
    """exp of the mean negative log likelihood of the tokens after the first, in natural logarithms."""
    total, count = 0.0, 0
    for ids, labels in rows:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].float()
        targets = torch.tensor(labels[1:] if answers_only else ids[1:])
        total += float(cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))
        count += int((targets != IGNORED).sum())
    return math.exp(total / count)


def quantised(model: PreTrainedModel, quantize: WeightFormat) -> PreTrainedModel:
    """A copy of `model` in bfloat16 with its layers' weights, and a head of its own, in the format."""
    model = copy.deepcopy(model).bfloat16()
    if quantize != "none":
        quantise_head(model, quantize)
        for layer in architecture.layers_of(model):
            quantise_layer(layer, quantize)
    return model


def random_llama() -> LlamaForCausalLM:
    """88 million random weights, float32, the same ones each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=768, intermediate_size=2304, num_hidden_layers=11, num_attention_heads=12
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@torch.inference_mode()
def logits(model: PreTrainedModel) -> torch.Tensor:
    """[positions, vocabulary] float32, for the same random prompt each time."""
    prompt = random.Random(0).choices(range(2048), k=_PROMPT_TOKENS)
    return model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0].float()


def measure() -> list[Quality]:
    tokenizer = Tokenizer.from_file(str(OUT / "tokenizer.json"))
    rows = [encode(tokenizer, dialogue) for dialogue in held_out()]
    guide = AutoModelForCausalLM.from_pretrained(OUT, dtype=torch.bfloat16).eval().requires_grad_(False)
    llama = random_llama()
    expected = logits(llama)
    return [_quality(quantize, guide, rows, llama, expected) for quantize in FORMATS]


def _quality(
    quantize: WeightFormat, guide: PreTrainedModel, rows: list[Encoded], llama: PreTrainedModel, expected: torch.Tensor
) -> Quality:
    model = quantised(guide, quantize)
    return Quality(
        quantize,
        perplexity(model, rows, answers_only=True),
        perplexity(model, rows, answers_only=False),
        float(cosine_similarity(logits(quantised(llama, quantize)), expected, dim=-1).mean()),
        _layers_bytes(llama, quantize),
    )


def _layers_bytes(model: PreTrainedModel, quantize: WeightFormat) -> int:
    """What the planner reckons with, without the ends."""
    half = copy.deepcopy(model).bfloat16()
    layers = architecture.layers_of(half)
    ends = sum(p.nbytes for p in half.parameters()) - sum(p.nbytes for p in layers.parameters())
    return weights_bytes(half, quantize) - ends + head_saved_bytes(quantisable_head(half), quantize, "bfloat16")


def kernel_errors() -> list[KernelError]:
    """For each kernel that this machine has, on a 2048 x 2048 weight and 16 Gaussian rows in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(_KERNEL_ROWS, 2048, generator=generator).bfloat16()
    found: list[KernelError] = []
    for held in HELD:
        weight = rounded_to(held, torch.randn(2048, 2048, generator=generator))
        expected = rows.float() @ weight.dequantise(slice(None), torch.float32).t()
        for make in candidates(held, torch.device("cpu")):
            error = float((make(weight)(rows).float() - expected).norm() / expected.norm())
            found.append(KernelError(str(held), make.__name__, error))  # pyright: ignore[reportFunctionMemberAccess]
    return found


def misses(figures: Sequence[Quality]) -> list[str]:
    """What is worse than its goal, in words."""
    plain = figures[0]
    found: list[str] = []
    for figure in figures[1:]:
        if figure.answers > plain.answers * (1 + MOST_PERPLEXITY[figure.quantize]):
            found.append(f"{figure.quantize}: perplexity {figure.answers:.4f}, in bfloat16 {plain.answers:.4f}")
        if figure.cosine < LEAST_COSINE.get(figure.quantize, -1):
            found.append(f"{figure.quantize}: cosine {figure.cosine:.4f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the quality of quantised weights.")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write (default: docs/quantisation.md)")
    options = parser.parse_args()
    figures = measure()
    options.out.write_text(page(figures, kernel_errors()), "utf-8")
    print(f"written: {options.out}")
    for sentence in misses(figures):
        print(f"missed its goal: {sentence}")
    raise SystemExit(1 if misses(figures) else 0)


if __name__ == "__main__":
    main()
