"""`python -m build_scripts.cache_quality`: what keys and values in int8 cost in quality, for docs/kv-cache.md.

Perplexity of the built-in model on the held-out dialogues of `build_scripts.quality`, computed by the engine itself:
all that is attended to has passed its cache. Exits with 1 where int8 costs more than 1 %.
"""

from __future__ import annotations

import math
from contextlib import closing
from typing import Final

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy

from build_scripts.guide_tokenizer import IGNORED, encode
from build_scripts.quality import held_out
from build_scripts.train_guide import OUT, Encoded
from transport.messages import ModelRef, Plan, Step, StepRow
from transport.types import CacheFormat
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.planning.facts import DeviceCapacity, PlanSettings
from vramancer_cli.planning.placement import place

FORMATS: Final[tuple[CacheFormat, ...]] = ("plain", "int8")
MOST: Final = 0.01
_LIMIT_BYTES: Final = 1 << 30


def make_plan(engine: TorchEngine, kv_cache: CacheFormat, tokens: int) -> Plan:
    """The built-in model in bfloat16 on this machine alone, with steps of as many tokens as a sequence has."""
    facts = engine.model_facts(OUT, ModelRef("guide", "builtin", str(OUT), engine.digest(OUT)))
    settings = PlanSettings(
        "bfloat16", tokens, block_tokens=tokens, max_step_tokens=tokens, max_sequences=1, kv_cache=kv_cache
    )
    return place(facts, (DeviceCapacity("head", "head", engine.device_facts(), _LIMIT_BYTES),), "head", settings, 1)


def perplexity(kv_cache: CacheFormat, rows: list[Encoded]) -> tuple[float, float, int]:
    """Of the answers, and of all tokens; and the bytes of a token's keys and values."""
    engine = TorchEngine("cpu", limit_bytes=_LIMIT_BYTES)
    plan = make_plan(engine, kv_cache, max(len(ids) for ids, _ in rows))
    losses: list[float] = [0.0, 0.0]
    counts = [0, 0]
    with (
        closing(engine.load_stage(OUT, plan, 0, lambda *_: None)) as stage,
        closing(engine.load_ends(OUT, plan, lambda *_: None)) as ends,
    ):
        for number, (ids, labels) in enumerate(rows):
            row = StepRow(number, 0, len(ids), (0,), ((0,),), len(ids))
            step = Step(plan.epoch, number, (row,), ended=(number - 1,) if number else ())
            logits = ends.logits(stage.execute(step, ends.embed(step, ids)).hidden)[:-1].float()
            for index, targets in enumerate((torch.tensor(labels[1:]), torch.tensor(ids[1:]))):
                losses[index] += float(cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))
                counts[index] += int((targets != IGNORED).sum())
        token_bytes = stage.kv_bytes // (plan.block_count * plan.block_tokens)
    answers, everything = (math.exp(loss / count) for loss, count in zip(losses, counts, strict=True))
    return answers, everything, token_bytes


def main() -> int:
    tokenizer = Tokenizer.from_file(str(OUT / "tokenizer.json"))
    rows = [encode(tokenizer, dialogue) for dialogue in held_out()]
    found = {kv_cache: perplexity(kv_cache, rows) for kv_cache in FORMATS}
    plain = found["plain"]
    print("| cache | perplexity, answers | perplexity, all tokens | bytes of a token |")
    print("| --- | --- | --- | --- |")
    for kv_cache, (answers, everything, token_bytes) in found.items():
        cells = (
            f"{value:.4f} ({value / base - 1:+.2%})" for value, base in zip((answers, everything), plain, strict=False)
        )
        print(f"| {kv_cache} | {' | '.join(cells)} | {token_bytes} |")
    return int(found["int8"][0] > plain[0] * (1 + MOST))


if __name__ == "__main__":
    raise SystemExit(main())
