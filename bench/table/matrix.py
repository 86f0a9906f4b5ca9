"""`make bench-full`: the whole matrix, a row at a time, each beside llama.cpp and beside what the cost model says.

    python -m bench.table.matrix [--processes 1 2 3] [--ways loopback gigabit 1ms 5ms] [--prompts 128 1024]
                                 [--streams 1 4 16 64] [--bits 8 4]

Takes hours. Each row is kept as soon as it is measured (full.jsonl); a run that was stopped goes on where it was,
unless `--fresh` is given. Writes full.jsonl and full.md into bench/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, Final

from bench.binary import RESULTS, surroundings
from bench.reports import markdown_table
from bench.table import peer_llama, scenes
from bench.table.cells import BITS, Bits
from bench.table.costs import LOOPBACK, Case, Costs, Way
from bench.table.ours import Ours, Serving, running
from bench.table.peer_llama import LlamaCpp
from bench.table.preparing import WORK, Bench, prepared, say
from bench.table.streams import NotMeasuredError

WAYS: Final[Mapping[str, Way]] = {
    "loopback": LOOPBACK,
    "gigabit": Way(bytes_per_s=1e9 / 8),
    "1ms": Way(0.001),
    "5ms": Way(0.005),
}
PROCESSES: Final = (1, 2, 3)
PROMPTS: Final = (128, 1024)
STREAMS: Final = (1, 4, 16, 64)
MEMORY_BYTES: Final = 5 << 30
CONTEXT_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class Scene:
    """So many nodes of one core, and the way between them."""

    bits: Bits
    processes: int
    way: str


@dataclass(frozen=True, slots=True)
class Line:
    """Tokens a second of a row: decode of all streams behind the prompt, or (0 streams) the prompt alone. None: it
    did not run, and `why`."""

    scene: Scene
    prompt: int
    streams: int
    ours: float | None
    theirs: float | None
    predicted: float
    why: str = ""

    @property
    def key(self) -> tuple[object, ...]:
        return (*asdict(self.scene).values(), self.prompt, self.streams)

    def cells(self) -> tuple[str, ...]:
        ratio = f"{self.ours / self.theirs:.2f} x" if self.ours and self.theirs else ""
        streams = f"{self.streams} stream{'s' if self.streams > 1 else ''}"
        what = f"decode, {streams} behind {self.prompt}" if self.streams else f"prefill {self.prompt}"
        where = f"{self.scene.processes} x 1 core, {self.scene.way}"
        rates = ("" if rate is None else f"{rate:.3g}" for rate in (self.ours, self.theirs))
        return (f"{self.scene.bits} bit", where, what, *rates, ratio, f"{self.predicted:.3g}", self.why)


def measure(bench: Bench, scene: Scene, costs: Costs, wanted: Sequence[tuple[int, int]]) -> Iterator[Line]:
    """A line for each (prompt, streams) of `wanted`."""
    way, serving = WAYS[scene.way], _serving(bench, scene.bits)
    with ExitStack() as stack:
        places = stack.enter_context(scenes.placed(scene.processes, way))
        ours = stack.enter_context(running(bench.folder, serving, places))
        servers = stack.enter_context(peer_llama.rpc_servers(bench.programs, places)) if len(places) > 1 else []
        split = ",".join("1" for _ in servers)
        llama = LlamaCpp(
            bench.programs, bench.ggufs[scene.bits], 1, places[0].cores, tuple(servers), bench.shape.layers + 1, split
        )
        for prompt, streams in wanted:
            yield _line(scene, prompt, streams, ours, llama, costs.rate(_case(scene, prompt, streams)))


def _case(scene: Scene, prompt: int, streams: int) -> Case:
    way, stages = WAYS[scene.way], scene.processes
    return Case(streams, prompt, stages, way) if streams else Case(stages=stages, way=way, prompt_tokens=prompt)


def _line(scene: Scene, prompt: int, streams: int, ours: Ours, llama: LlamaCpp, predicted: float) -> Line:
    """What cannot be measured is a line too, which says why."""

    def rate(who: Ours | LlamaCpp) -> tuple[float | None, str]:
        try:
            return who.decode(prompt, scenes.TOKENS, streams) if streams else who.prefill(prompt), ""
        except (NotMeasuredError, OSError) as error:
            return None, str(error).splitlines()[-1][:120]

    (mine, why), (others, why_not) = rate(ours), rate(llama)
    line = Line(scene, prompt, streams, mine, others, predicted, why or why_not)
    say(" ".join(line.cells()))
    return line


def _serving(bench: Bench, bits: Bits) -> Serving:
    return replace(bench.serving(bits), context_tokens=CONTEXT_TOKENS, memory_bytes=MEMORY_BYTES)


# --- what is kept -----------------------------------------------------------------------------------------------------


def read(path: Path) -> list[Line]:
    """What earlier runs left."""
    if not path.is_file():
        return []
    return [_read_line(json.loads(text)) for text in path.read_text("utf-8").splitlines()]


def _read_line(data: Mapping[str, Any]) -> Line:
    return Line(**{**data, "scene": Scene(**data["scene"])})


def keep(line: Line, path: Path) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(line), ensure_ascii=False) + "\n")


def markdown(lines: Sequence[Line], around: Mapping[str, str]) -> str:
    words = ", ".join(f"{name} {value}" for name, value in around.items())
    head = ("", "hosts", "work", "ours, tokens/s", "llama.cpp", "ratio", "predicted", "")
    return f"# The whole matrix\n\n{words}.\n\n{markdown_table([head, *(line.cells() for line in lines)])}"


def missing(kept: Sequence[Line], options: argparse.Namespace) -> dict[Scene, list[tuple[int, int]]]:
    """(prompt, streams) of each scene that is still to be measured. One process has no way to another."""
    there = {line.key for line in kept}
    left: dict[Scene, list[tuple[int, int]]] = {}
    for bits, processes, way in product(options.bits, options.processes, options.ways):
        if processes == 1 and way != "loopback":
            continue
        scene = Scene(bits, processes, way)
        works = product(options.prompts, (0, *options.streams))
        wanted: list[tuple[int, int]] = [work for work in works if Line(scene, *work, None, None, 0.0).key not in there]
        if wanted:
            left[scene] = wanted
    return left


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    path: Path = options.out / "full.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        path.unlink(missing_ok=True)
    left, around = missing(read(path), options), surroundings()
    with prepared(options.work) as bench:
        calibrated = cache(lambda bits: scenes.calibrated(bench.folder, _serving(bench, bits)))
        for scene, wanted in left.items():
            for line in measure(bench, scene, calibrated(scene.bits), wanted):
                keep(line, path)
                (options.out / "full.md").write_text(markdown(read(path), around), "utf-8")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    several = partial(parser.add_argument, nargs="+")
    several("--bits", type=int, choices=BITS, default=BITS)
    several("--processes", type=int, choices=PROCESSES, default=PROCESSES)
    several("--ways", choices=tuple(WAYS), default=tuple(WAYS))
    several("--prompts", type=int, default=PROMPTS, help="tokens")
    several("--streams", type=int, default=STREAMS)
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--work", type=Path, default=WORK, help="what is made once and kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
