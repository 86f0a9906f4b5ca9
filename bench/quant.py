"""`make bench-quant`: products by quantised weights beside bfloat16's, at the shapes of a Llama of 1.1 billion weights.

    python -m bench.quant [--repetitions N] [--threads N]

All linear layers of one decoder layer, in turn with the same in bfloat16, on the CPU. Writes results/quant.json and
results/quant.md, and exits with 0 whether or not a goal was reached.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

import torch

from bench.binary import RESULTS, surroundings
from bench.reports import Measured, Row, table
from transport.types import WeightFormat
from vramancer_cli.engine.quant_layer import quantise_layer

LAYERS: Final = 16
SHAPES: Final = ((2048, 2048), (512, 2048), (512, 2048), (2048, 2048), (8192, 2048), (8192, 2048), (2048, 8192))
"""[outputs, inputs]: query, key, value, output, gate, up, down."""
ROWS: Final = (1, 4, 16, 128)
GOAL: Final = 1.0
COMPARED: Final = ("quantised", "bfloat16")


def measure(repetitions: int) -> list[Row]:
    """Tokens a second through the linear layers of LAYERS decoder layers, the bfloat16 ones and another in turn."""
    plain = _layer()
    formats: dict[WeightFormat, torch.nn.ModuleList] = {"int8": _layer(), "int4": _layer()}
    for quantize, layer in formats.items():
        quantise_layer(layer, quantize)
    return [_row(quantize, count, plain, layer, repetitions) for quantize, layer in formats.items() for count in ROWS]


def _layer() -> torch.nn.ModuleList:
    modules = (torch.nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16) for outputs, inputs in SHAPES)
    return torch.nn.ModuleList(modules).requires_grad_(False)


def _row(
    quantize: WeightFormat, count: int, plain: torch.nn.ModuleList, layer: torch.nn.ModuleList, repetitions: int
) -> Row:
    print(f"… {quantize}, {count} rows", flush=True)
    inputs = {size: torch.randn(count, size).bfloat16() for size in {columns for _, columns in SHAPES}}
    for modules in (layer, plain):
        _pass_s(modules, inputs)  # does not count
    pairs = [(_pass_s(layer, inputs), _pass_s(plain, inputs)) for _ in range(repetitions)]
    ratio = median(theirs / ours for ours, theirs in pairs)
    ours, theirs = (
        Measured("tokens/s", tuple(count / (LAYERS * seconds) for seconds in values))
        for values in zip(*pairs, strict=True)
    )
    name = f"{quantize}, {count} row{'s' if count > 1 else ''}"
    return Row(name, ours, theirs, f"≥ {GOAL:g} x", ratio >= GOAL, ratio)


@torch.inference_mode()
def _pass_s(layer: torch.nn.ModuleList, inputs: dict[int, torch.Tensor]) -> float:
    started = time.perf_counter()
    for module, (_, columns) in zip(layer, SHAPES, strict=True):
        module(inputs[columns])
    return time.perf_counter() - started


def write(rows: Sequence[Row], around: dict[str, str], folder: Path) -> str:
    """Writes quant.json and quant.md; the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ", ".join(f"{name} {value}" for name, value in around.items())
    note = "Linear layers alone, measured in turn; the ratio is the median of the pairs' ratios, above 1 is faster."
    text = f"# Quantised products beside bfloat16's\n\n{words}. {note}\n\n{table(rows, COMPARED)}"
    data = {**around, "rows": [row.to_json() for row in rows]}
    (folder / "quant.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / "quant.md").write_text(text, "utf-8")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.quant", description="Quantised products, measured.")
    parser.add_argument("--repetitions", type=int, default=5, help="of each pair (default: 5)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="for one product")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    around = {**surroundings(), "threads": str(options.threads), "torch": torch.__version__}
    print("\n" + write(measure(max(1, options.repetitions)), around, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
