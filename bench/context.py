"""`python -m bench.context`: what a long context costs, as decode tokens per second of one sequence, on this CPU.

    python -m bench.context [--repetitions N] [--tokens N] [--layouts view,runs,blocks]

A small random Llama in float32, one stage, blocks of 16 tokens. The context is taken as it lies in the cache: what is
measured is one token's pass through the layers behind 128, 512, 2048 and 8192 others. `view`: the
blocks follow each other, and attention reads them as one view; `runs`: they lie in two runs, as with a shared
beginning; `blocks`: no two follow each other. All lengths and layouts take turns, so that the ratios hold on a busy
machine too. Writes results/context.json and results/context.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from transport.messages import ModelRef, Plan, StagePlan, Step, StepRow
from transport.types import LayerRange
from vramancer_cli.engine.boundary import Boundary
from vramancer_cli.engine.stage import PagedStage
from vramancer_cli.engine.torch_engine import TorchEngine

RESULTS: Final = Path(__file__).parent / "results"
CONTEXTS: Final = (128, 512, 2048, 8192)
LAYOUTS: Final = ("view", "runs", "blocks")
BLOCK_TOKENS: Final = 16
_RUNS: Final = 2
_FILLED_AT_ONCE: Final = 32
_WARM_UP: Final = 4
_HIDDEN_SIZE: Final = 512


def make_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=_HIDDEN_SIZE,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=16384,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def make_plan(engine: TorchEngine, folder: Path, context_tokens: int) -> Plan:
    """One stage with room for every length and layout at once."""
    ref = ModelRef("bench", "folder", str(folder), engine.digest(folder))
    facts = engine.model_facts(folder, ref)
    layers = LayerRange(0, facts.layer_count)
    block_count = 2 * context_tokens // BLOCK_TOKENS
    stage = StagePlan("", engine.device_facts(), layers, facts.weights_bytes(layers, "float32"), 0, 0)
    return Plan(
        1, ref, "float32", context_tokens, BLOCK_TOKENS, block_count, _FILLED_AT_ONCE * BLOCK_TOKENS, "", 0, (stage,)
    )


def table(layout: str, block_count: int) -> tuple[int, ...]:
    """`block_count` blocks out of a pool with twice as many."""
    if layout == "view":
        return tuple(range(block_count))
    if layout == "blocks":
        return tuple(range(0, 2 * block_count, 2))
    run = -(-block_count // _RUNS)
    return tuple(index + index // run for index in range(block_count))


class Bench:
    """A stage whose every block holds something, so that a sequence may begin behind any context."""

    def __init__(self, stage: PagedStage, plan: Plan) -> None:
        self._stage = stage
        self._hidden = torch.randn(_FILLED_AT_ONCE * BLOCK_TOKENS, _HIDDEN_SIZE)
        self._number = 0
        self._known: set[int] = set()
        for first in range(0, plan.block_count, _FILLED_AT_ONCE):
            self._fill(range(first, min(first + _FILLED_AT_ONCE, plan.block_count)))

    def decode(self, context: int, layout: str, tokens: int) -> float:
        """Tokens per second behind `context` tokens that lie as `layout` says; the first few are not counted."""
        blocks = table(layout, -(-(context + _WARM_UP + tokens) // BLOCK_TOKENS))
        self._run(StepRow(0, context, 1, (0,), (blocks,), 1))
        start = 0.0
        for token in range(1, _WARM_UP + tokens):
            start = time.perf_counter() if token == _WARM_UP else start
            self._run(StepRow(0, context + token, 1, (len(blocks),), ((),), 1), ended=())
        elapsed_s = time.perf_counter() - start
        self._fill(blocks[context // BLOCK_TOKENS :])
        return tokens / elapsed_s

    def _fill(self, blocks: Sequence[int]) -> None:
        """Each by a sequence of its own."""
        self._run(*(StepRow(block, 0, BLOCK_TOKENS, (0,), ((block,),), 0) for block in blocks))

    def _run(self, *rows: StepRow, ended: tuple[int, ...] | None = None) -> None:
        """Ends what was there before, unless told otherwise."""
        gone = tuple(self._known) if ended is None else ended
        step = Step(1, self._number, rows, gone)
        self._stage.execute(step, Boundary(self._hidden[: step.token_count]))
        self._known = {row.sequence for row in rows}
        self._number += 1


Rates = dict[str, dict[int, float]]
"""Decode tokens per second by layout and context."""


def measure(layouts: Sequence[str], repetitions: int, tokens: int) -> tuple[Rates, dict[int, float]]:
    """The median rates over the repetitions; and by context the share of the shortest one's rate that would be left if
    only bytes counted: those of the weights, and of the keys and values."""
    seen: dict[tuple[str, int], list[float]] = {(layout, c): [] for layout in layouts for c in CONTEXTS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder)
        engine = TorchEngine("cpu", limit_bytes=2 << 30, threads=1)
        plan = make_plan(engine, folder, max(CONTEXTS) + 64)
        stage = engine.load_stage(folder, plan, 0, lambda *_: None)
        bench = Bench(stage, plan)
        for _ in range(repetitions):
            for (layout, context), rates in seen.items():
                rates.append(bench.decode(context, layout, tokens))
        weights_bytes, token_bytes = stage.weights_bytes, stage.kv_bytes // (plan.block_count * BLOCK_TOKENS)
        stage.close()
    at_least = weights_bytes + CONTEXTS[0] * token_bytes
    by_bytes = {c: at_least / (weights_bytes + c * token_bytes) for c in CONTEXTS}
    return {layout: {c: median(seen[layout, c]) for c in CONTEXTS} for layout in layouts}, by_bytes


def markdown(rates: Rates, by_bytes: dict[int, float]) -> str:
    """A table with tokens per second and, in brackets, the share of the shortest context's."""
    head = ("blocks lie", *(f"{context}" for context in CONTEXTS))
    lines = [head, ("---",) * len(head)]
    for layout, by_context in rates.items():
        base = rates[layout][CONTEXTS[0]]
        lines.append((layout, *(f"{rate:.0f} ({rate / base:.2f})" for rate in by_context.values())))
    lines.append(("by bytes alone", *(f"({share:.2f})" for share in by_bytes.values())))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    asked = parser.parse_args()
    rates, by_bytes = measure(asked.layouts.split(","), asked.repetitions, asked.tokens)
    text = markdown(rates, by_bytes)
    print(text)
    machine = {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "context.md").write_text(f"# Decode tokens a second by context (share of 128)\n\n{text}")
    figures = {**machine, "rates": rates, "by_bytes": by_bytes}
    (RESULTS / "context.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
