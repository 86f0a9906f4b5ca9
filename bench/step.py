"""`python -m bench.step`: where the time of one decode step goes in one process, in parts that add up.

    python -m bench.step [--layers N] [--streams 1,16] [--quantize int4,int8] [--threads N] [--steps N]

A random Llama of the shapes of the 1.1 billion one (hidden 2048, 32/8 heads, MLP 8192, vocabulary 32000), with fewer
layers: what is wanted is a layer's time and what is around all layers. Steps of two kinds take turns, so that their
ratios hold on a busy machine too: as the engine runs now, and with the family's own layers and torch's attention.
Writes results/step.json and results/step.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final
from unittest import mock

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from transport.messages import ModelRef, Plan, StagePlan, Step, StepRow
from transport.types import LayerRange, WeightFormat
from vramancer_cli.engine import batch, native, quant_linear, shard, siblings
from vramancer_cli.engine.ends import TorchEnds
from vramancer_cli.engine.stage import PagedStage
from vramancer_cli.engine.torch_engine import TorchEngine
from vramancer_cli.models.readout import Readout
from vramancer_cli.models.sampling import Draw, Sampling

RESULTS: Final = Path(__file__).parent / "results"
CONTEXT_TOKENS: Final = 128
BLOCK_TOKENS: Final = 16
_WARM_UP: Final = 3
_BLOCKS: Final = 16
"""Of each sequence."""

WAYS: Final = ("flat layers", "the family's layers")
PARTS: Final = ("embedding", "products", "attention", "rest of the layers", "head and choice")
Figures = dict[str, float]
"""Milliseconds of a step by part."""


def make_model(folder: Path, layers: int) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def make_plan(engine: TorchEngine, folder: Path, quantize: WeightFormat, streams: int) -> Plan:
    ref = ModelRef("bench", "folder", str(folder), engine.digest(folder))
    facts = engine.model_facts(folder, ref)
    layers = LayerRange(0, facts.layer_count)
    weights_bytes = facts.weights_bytes(layers, "bfloat16", quantize)
    stage = StagePlan("", engine.device_facts(), layers, weights_bytes, 0, 0)
    return Plan(
        1, ref, "bfloat16", 2048, BLOCK_TOKENS, streams * _BLOCKS, 128, "", 0, (stage,), quantize=quantize
    )  # fmt: skip


class Clock:
    """Adds up what is spent in some functions while they are called."""

    def __init__(self) -> None:
        self.spent_s: Figures = {}

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent_s[part] = self.spent_s.get(part, 0.0) + time.perf_counter() - started

        return call

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The products by quantised weights, and attention with what it writes, in the layers."""
        parts = (
            (quant_linear.QuantisedLinear, "forward", "products"),
            (siblings.SharedProduct, "forward", "products"),
            (batch.Batch, "attend", "attention"),
        )
        with ExitStack() as patches:
            for owner, name, part in parts:
                timed = self.timed(part, getattr(owner, name))
                # A plain function, so that it is bound to the instance as the method was.
                patches.enter_context(mock.patch.object(owner, name, timed))
            yield


class Bench:
    """A stage and the ends, and `streams` sequences that stand behind CONTEXT_TOKENS tokens."""

    def __init__(self, stage: PagedStage, ends: TorchEnds, streams: int) -> None:
        self._stage, self._ends, self._streams = stage, ends, streams
        self._number = self._decoded = 0
        for stream in range(streams):
            blocks = tuple(range(stream * _BLOCKS, (stream + 1) * _BLOCKS))
            self._run((StepRow(stream, 0, CONTEXT_TOKENS, (0,), (blocks,), 0),), Clock())

    def step(self) -> Figures:
        """The next token of each stream: milliseconds by part."""
        clock, at = Clock(), CONTEXT_TOKENS + self._decoded
        self._run(tuple(StepRow(n, at, 1, (_BLOCKS,), ((),), 1) for n in range(self._streams)), clock)
        self._decoded += 1
        spent = {part: 1e3 * spent_s for part, spent_s in clock.spent_s.items()}
        spent["rest of the layers"] = spent.pop("layers") - spent["products"] - spent["attention"]
        return spent

    def _run(self, rows: tuple[StepRow, ...], clock: Clock) -> None:
        step = Step(1, self._number, rows, ())
        self._number += 1
        hidden = clock.timed("embedding", self._ends.embed)(step, [7] * step.token_count)
        with clock.watching():
            output = clock.timed("layers", self._stage.execute)(step, hidden)
        readouts = [Readout(n, 1, (Draw(Sampling(temperature=0.0), 0),)) for n in range(step.output_count)]
        if readouts:
            clock.timed("head and choice", self._ends.read)(output, readouts)


@contextmanager
def loading(way: str) -> Iterator[None]:
    """While a stage is loaded and made: what it computes with."""
    with ExitStack() as patches:
        if way == WAYS[1]:
            patches.enter_context(mock.patch.object(shard, "flat_form", lambda *_: None))
            patches.enter_context(mock.patch.object(shard.Shard, "is_rounded", False))
        yield


def measure(folder: Path, quantize: WeightFormat, streams: int, threads: int, steps: int) -> dict[str, Figures]:
    """The median of each part, by way."""
    engine = TorchEngine("cpu", limit_bytes=8 << 30, threads=threads)
    plan = make_plan(engine, folder, quantize, streams)
    ends = engine.load_ends(folder, plan, lambda *_: None)
    benches: dict[str, Bench] = {}
    for way in WAYS:
        with loading(way):
            benches[way] = Bench(engine.load_stage(folder, plan, 0, lambda *_: None), ends, streams)
    seen: dict[str, list[Figures]] = {way: [] for way in WAYS}
    for number in range(_WARM_UP + steps):
        for way, bench in benches.items():
            with loading(way):
                figures = bench.step()
            if number >= _WARM_UP:
                seen[way].append(figures)
    return {way: {part: median(one[part] for one in figures) for part in PARTS} for way, figures in seen.items()}


def markdown(found: Mapping[str, Mapping[str, Figures]]) -> str:
    """A row for each case and way."""
    head = ("ms", "", *PARTS, "together")
    lines = [head, ("---",) * len(head)]
    for case, ways in found.items():
        for way, figures in ways.items():
            parts = (f"{figures[part]:.2f}" for part in PARTS)
            lines.append((case, way, *parts, f"{sum(figures.values()):.2f}"))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--streams", default="1,16")
    parser.add_argument("--quantize", default="int4,int8")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=24)
    asked = parser.parse_args()
    found: dict[str, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name), asked.layers)
        for quantize in asked.quantize.split(","):
            for streams in map(int, asked.streams.split(",")):
                case = f"{quantize}, {streams} streams"
                found[case] = measure(Path(name), quantize, streams, asked.threads, asked.steps)
    text = markdown(found)
    print(text)
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "threads": asked.threads}
    described = {**machine, "torch": torch.__version__, "layers": asked.layers, "kernels": native.instruction_set()}
    RESULTS.mkdir(exist_ok=True)
    where = f"{asked.layers} layers, {asked.threads} threads, {CONTEXT_TOKENS} tokens behind"
    (RESULTS / "step.md").write_text(f"# Milliseconds of a decode step: {where}\n\n{text}")
    (RESULTS / "step.json").write_text(json.dumps({**described, "ms": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
