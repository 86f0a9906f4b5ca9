"""`make bench`: the table, and how it grows, into bench/results/.

    python -m bench.table [--cells ABC] [--bits 8] [--repetitions N] [--add]

The first run builds llama.cpp (some ten minutes) and makes the model (two). Cells that are named are measured alone; with
`--add` they take the place of their rows in the last run's table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Final

import torch

from bench.binary import RESULTS, surroundings
from bench.table import llama_build, report
from bench.table.cells import CELLS, FORMATS, Bits, Cell
from bench.table.gguf_model import gguf_file
from bench.table.held import ours_bytes, theirs_bytes
from bench.table.measuring import Bench, measure
from bench.table.model import BIG, checkpoint
from bench.table.peer_transformers import measure_transformers
from bench.table.report import Record, Report

WORK: Final = Path(__file__).parents[2] / ".bench"
BITS: Final[tuple[Bits, ...]] = (8, 4)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    around = {**surroundings(), "torch": torch.__version__, "llama.cpp": f"{llama_build.PACKAGE} {llama_build.VERSION}"}
    told = replace(report.read(options.out), around=around) if options.add else Report(around)
    with tempfile.TemporaryDirectory(prefix="vramancer-bench-") as name:
        bench = _prepared(options.work, Path(name))
        for record in _records(bench, options):
            told = report.merged(told, around, [record], ())
            report.write(told, options.out)  # each time: it takes minutes
        if options.peers:
            told = report.merged(told, around, (), measure_transformers(bench.checkpoint))
    print("\n" + report.write(told, options.out))
    return 0


def _prepared(work: Path, folder: Path) -> Bench:
    """All that is made once and kept."""
    work.mkdir(exist_ok=True)
    programs = llama_build.programs(work)
    _say("the model")
    made = checkpoint(BIG, work)
    ggufs = {bits: gguf_file(BIG, made, FORMATS[bits].theirs) for bits in BITS}
    return Bench(BIG, made, ggufs, programs, folder)


def _records(bench: Bench, options: argparse.Namespace) -> Iterator[Record]:
    cells = [_repeated(cell, options.repetitions) for cell in CELLS if cell.letter in options.cells]
    for bits in options.bits:
        ours, theirs = ours_bytes(bench.checkpoint, FORMATS[bits].ours), theirs_bytes(bench.ggufs[bits])
        for _, group in groupby(cells, lambda cell: cell.setting):
            for pairs in measure(bench, list(group), bits, _say):
                others = theirs if pairs.cell.peer == "llama.cpp" else ours
                rates = (pairs.ours, pairs.theirs)
                yield Record(pairs.cell.letter, bits, *rates, ours, others, pairs.arrangement)


def _repeated(cell: Cell, repetitions: int) -> Cell:
    return replace(cell, repetitions=repetitions) if repetitions else cell


def _say(words: str) -> None:
    print(f"… {words}", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    letters = "".join(cell.letter for cell in CELLS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default=letters, help=f"some of {letters} (default: all)")
    parser.add_argument("--bits", type=int, nargs="*", choices=BITS, default=BITS, help="8, 4 (default: both)")
    parser.add_argument("--repetitions", type=int, default=0, help="of each pair (default: each cell's own)")
    parser.add_argument("--add", action="store_true", help="to the last run's table")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="without transformers")
    parser.add_argument("--work", type=Path, default=WORK, help="what is made once and kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
