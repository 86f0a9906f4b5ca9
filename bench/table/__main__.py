"""`make bench`: the table, and how it grows, into bench/results/.

    python -m bench.table [--cells ABC] [--bits 8] [--repetitions N] [--add] [--curves delay] [--no-peers]

The first run builds llama.cpp (some ten minutes) and makes the model (two). With `--add`, the cells that are named take
the place of their rows in the last run's table, and nothing else is measured but the curves that are named.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch

from bench.binary import RESULTS, surroundings
from bench.table import growth, growth_report, llama_build, report
from bench.table.cells import BITS, CELLS, FORMATS, Cell
from bench.table.held import ours_bytes, theirs_bytes
from bench.table.measuring import measure
from bench.table.peer_transformers import measure_transformers
from bench.table.preparing import WORK, Bench, prepared, say
from bench.table.report import Other, Record, Report
from bench.table.streams import NotMeasuredError


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    around = {**surroundings(), "torch": torch.__version__, "llama.cpp": f"{llama_build.PACKAGE} {llama_build.VERSION}"}
    with prepared(options.work) as bench:
        told = _measured(bench, around, options)
        if options.curves:
            curves = list(growth.measure(options.work, bench.folder, say, options.curves))
            growth_report.write(curves, around, options.out)
    print(f"\n{told}")
    return 0


def _measured(bench: Bench, around: Mapping[str, str], options: argparse.Namespace) -> str:
    """The table, written down after each cell: it takes minutes."""
    told = replace(report.read(options.out), around=around) if options.add else Report(around)
    for record in _records(bench, options):
        told = report.merged(told, around, [record], ())
        report.write(told, options.out)
    others = _transformers(bench.checkpoint) if options.peers and not options.add else ()
    return report.write(report.merged(told, around, (), others), options.out)


def _transformers(folder: Path) -> Sequence[Other]:
    say("transformers")
    try:
        return measure_transformers(folder)
    except NotMeasuredError as error:
        say(f"not measured: {error}")
        return ()


def _records(bench: Bench, options: argparse.Namespace) -> Iterator[Record]:
    cells = [_repeated(cell, options.repetitions) for cell in CELLS if cell.letter in options.cells]
    for bits in options.bits:
        ours, theirs = ours_bytes(bench.checkpoint, FORMATS[bits].ours), theirs_bytes(bench.ggufs[bits])
        for _, group in groupby(cells, lambda cell: cell.setting):
            for pairs in measure(bench, list(group), bits, say):
                others = theirs if pairs.cell.peer == "llama.cpp" else ours
                rates = (pairs.ours, pairs.theirs)
                yield Record(pairs.cell.letter, bits, *rates, ours, others, pairs.arrangement)


def _repeated(cell: Cell, repetitions: int) -> Cell:
    return replace(cell, repetitions=repetitions) if repetitions else cell


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    letters = "".join(cell.letter for cell in CELLS)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default=letters, help=f"some of {letters} (default: all)")
    parser.add_argument("--bits", type=int, nargs="*", choices=BITS, default=BITS, help="8, 4 (default: both)")
    parser.add_argument("--repetitions", type=int, default=0, help="of each pair (default: each cell's own)")
    parser.add_argument("--add", action="store_true", help="to the last run's table")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="without transformers")
    parser.add_argument("--curves", nargs="*", choices=growth.KINDS, help="default: all, none with --add")
    parser.add_argument("--work", type=Path, default=WORK, help="what is made once and kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    if options.curves is None:
        options.curves = [] if options.add else list(growth.KINDS)
    return options


if __name__ == "__main__":
    sys.exit(main())
