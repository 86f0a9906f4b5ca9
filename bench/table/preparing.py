"""What a run needs before it measures: llama.cpp's programs and the models, made once and kept; and how it ends."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from bench.table import llama_build
from bench.table.cells import BITS, FORMATS, Bits
from bench.table.gguf_model import gguf_file
from bench.table.model import BIG, Shape, checkpoint
from bench.table.ours import Serving

WORK: Final = Path(__file__).parents[2] / ".bench"
"""What is made once and kept."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a run has: where models and folders lie, llama.cpp's programs, which model."""

    shape: Shape
    checkpoint: Path
    ggufs: Mapping[Bits, Path]
    programs: Path
    folder: Path

    def serving(self, bits: Bits) -> Serving:
        return Serving(self.shape, self.checkpoint, FORMATS[bits].ours)


@contextmanager
def prepared(work: Path) -> Iterator[Bench]:
    """With a folder that is gone afterwards, also when the run is told to end. Raises BuildError."""
    ends_cleanly()
    work.mkdir(exist_ok=True)
    programs = llama_build.programs(work)
    say("the model")
    made = checkpoint(BIG, work)
    ggufs: dict[Bits, Path] = {bits: gguf_file(BIG, made, FORMATS[bits].theirs) for bits in BITS}
    with tempfile.TemporaryDirectory(prefix="vramancer-bench-") as name:
        yield Bench(BIG, made, ggufs, programs, Path(name))


def ends_cleanly() -> None:
    """Told to end, a run still stops its nodes and servers."""
    signal.signal(signal.SIGTERM, _stop)


def _stop(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


def say(words: str) -> None:
    print(f"… {words}", flush=True)
