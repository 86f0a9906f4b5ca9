"""`make bench-gpu`: a Llama of 8 billion random weights on a CUDA GPU, against what the GPU itself can do.

    python -m bench.gpu [--repetitions N]

Ceilings are measured in the same run: bytes a second of a large copy, operations a second of a large bfloat16 product.
Decoding one stream reads every weight once per token, and is held against the first; a prompt of 1024 tokens multiplies
by every weight, and is held against the second. Then 64 streams, and two processes on the same GPU, over loopback with
TLS. Real nodes through the HTTP API, as in bench/table. Writes gpu.json and gpu.md. Without CUDA it says so and ends.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Final

import torch

from bench.binary import RESULTS, surroundings
from bench.reports import Measured, Row, table
from bench.table.held import ours_bytes
from bench.table.model import EIGHT_B, checkpoint
from bench.table.ours import Ours, Place, Serving, running
from bench.table.preparing import WORK, ends_cleanly, say
from transport.types import WeightFormat

DECODE_GOAL: Final = 0.7
PREFILL_GOAL: Final = 0.6
PROMPT: Final = 1024
TOKENS: Final = 128
STREAMS: Final = 64
FORMATS: Final[tuple[WeightFormat, ...]] = ("none", "int4")
COMPARED: Final = ("ours", "the ceiling")
_COPY_BYTES: Final = 4 << 30
_SIDE: Final = 8192
_ROUNDS: Final = 10
_MEMORY_BYTES: Final = 24 << 30


def bandwidth() -> float:
    """Bytes a second that a copy within the GPU's memory reads and writes."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _seconds(lambda: target.copy_(source))


def arithmetic() -> float:
    """Operations a second of a large bfloat16 product: a multiplication and an addition are two."""
    one, other = (torch.randn(_SIDE, _SIDE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return 2 * _SIDE**3 / _seconds(lambda: one @ other)


def _seconds(work: Callable[[], object]) -> float:
    """The middle one of some rounds, by the GPU's own clock."""
    times: list[float] = []
    for _ in range(_ROUNDS + 1):
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        work()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / 1000)
    return median(times[1:])


def measure(serving: Serving, folder: Path, repetitions: int) -> Iterator[Row]:
    """Rows of one format of weights: against the ceilings, then one process beside two."""
    name = "bfloat16" if serving.quantize == "none" else serving.quantize
    token_bytes = ours_bytes(serving.checkpoint, serving.quantize) - 2 * serving.shape.head_weights  # no embedding
    token_operations = 2 * (serving.shape.matrix_weights + serving.shape.head_weights)
    most_decode, most_prefill = bandwidth() / token_bytes, arithmetic() / token_operations
    torch.cuda.empty_cache()
    with running(folder, serving, [Place()]) as ours:
        one = rates(ours, repetitions)
    with running(folder, replace(serving, memory_bytes=serving.memory_bytes // 2), [Place(), Place()]) as ours:
        two = rates(ours, repetitions)
    yield against(f"{name}, decode, 1 stream", one["decode"], most_decode, DECODE_GOAL)
    yield against(f"{name}, prefill {PROMPT}", one["prefill"], most_prefill, PREFILL_GOAL)
    for work, found in one.items():
        yield beside(f"{name}, {work}, two processes beside one", two[work], found)


def rates(ours: Ours, repetitions: int) -> dict[str, Measured]:
    works: Mapping[str, Callable[[], float]] = {
        "decode": lambda: ours.decode(16, TOKENS),
        "prefill": lambda: ours.prefill(PROMPT),
        f"{STREAMS} streams": lambda: ours.decode(16, TOKENS, STREAMS),
    }
    for work in works.values():
        work()  # does not count: graphs are captured, kernels chosen
    return {name: Measured("tokens/s", tuple(work() for _ in range(repetitions))) for name, work in works.items()}


def against(name: str, found: Measured, ceiling: float, goal: float) -> Row:
    share = found.middle / ceiling
    return Row(name, found, Measured("tokens/s", (ceiling,)), f"≥ {goal:g} x", share >= goal, share)


def beside(name: str, two: Measured, one: Measured) -> Row:
    return Row(name, two, one, "none", True, two.middle / one.middle)


def write(rows: Sequence[Row], around: Mapping[str, str], folder: Path) -> str:
    """Writes gpu.json and gpu.md; the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ", ".join(f"{name} {value}" for name, value in around.items())
    text = f"# A Llama of 8 billion random weights on a GPU\n\n{words}.\n\n{table(rows, COMPARED)}"
    data = {**around, "rows": [row.to_json() for row in rows]}
    (folder / "gpu.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / "gpu.md").write_text(text, "utf-8")
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3, help="of each measurement (default: 3)")
    parser.add_argument("--work", type=Path, default=WORK, help="what is made once and kept: 16 GB")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("This machine has no CUDA GPU that torch can use: nothing was measured.", file=sys.stderr)
        return 2
    ends_cleanly()
    options.work.mkdir(exist_ok=True)
    around = {**surroundings(), "gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    say("the model")
    folder, rows = checkpoint(EIGHT_B, options.work), list[Row]()
    with tempfile.TemporaryDirectory(prefix="vramancer-bench-") as name:
        for quantize in FORMATS:
            serving = Serving(EIGHT_B, folder, quantize, memory_bytes=_MEMORY_BYTES, device="cuda:0")
            rows += measure(serving, Path(name), options.repetitions)
            write(rows, around, options.out)
    print("\n" + write(rows, around, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
