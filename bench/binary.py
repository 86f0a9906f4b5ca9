"""`make bench-binary`: what the one-file program costs beside the same program in an ordinary Python. Linux.

    python -m bench.binary [FILE] [--venv PROGRAM] [--repetitions N] [--starts N] [--first-starts N]

Both run in turn, each with an empty HOME and nothing on PATH. Writes results/binary.json and results/binary.md, and
exits with 0 whether or not a goal was reached. Nothing runs any more afterwards, and no folder stays.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final, NoReturn

from bench.reports import Measured, Row, table
from build_scripts.frozen_program import Machine, free_ports, wait_ready, watch_until
from build_scripts.leftovers import remove
from build_scripts.pseudo_terminal import Terminal

ROOT: Final = Path(__file__).parents[1]
RESULTS: Final = Path(__file__).parent / "results"
COMPARED: Final = ("one file", "Python")
MOST_BYTES: Final = 320_000_000
FIRST_START_S: Final = 15.0
SMALL_VERB_S: Final = 0.6
SMALL_VERB_RATIO: Final = 3.0
START_RATIO: Final = 1.3
END_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Places:
    """The two programs, each on a machine of its own."""

    binary: Machine
    venv: Machine


@dataclass(frozen=True, slots=True)
class Counts:
    repetitions: int
    starts: int
    first_starts: int


def measure(places: Places, counts: Counts, say: Callable[[str], None]) -> list[Row]:
    rows: list[Row] = [_size(places.binary.program)]
    say("first starts, each with an empty cache")
    rows += _first_starts(places.binary, counts.first_starts)
    for verb in (["--help"], ["status", "--url", f"http://127.0.0.1:{free_ports(1)[0]}"]):
        say(f"vramancer {verb[0]}")
        rows.append(_small_verb(places, verb, counts.repetitions))
    say("start --master to /ready")
    return [*rows, _warm_start(places, counts.starts)]


def _size(program: Path) -> Row:
    size_bytes = program.stat().st_size
    measured = Measured("MB", (size_bytes / 1e6,))
    return Row("file size", measured, None, f"≤ {MOST_BYTES / 1e6:.0f} MB", size_bytes <= MOST_BYTES)


def _first_starts(machine: Machine, count: int) -> list[Row]:
    """Each with a cache folder of its own, which is gone again before the next."""
    times = [_first_start(machine, machine.folder / f"cache-{number}") for number in range(count)]
    unpacked, ready = (Measured("s", tuple(values)) for values in zip(*times, strict=True))
    goal = f"≤ {FIRST_START_S:.0f} s"
    return [
        Row("first start, to unpacked", unpacked, None, goal, unpacked.middle <= FIRST_START_S),
        Row("first start, to /ready", ready, None, goal, ready.middle <= FIRST_START_S),
    ]


def _first_start(machine: Machine, cache: Path) -> tuple[float, float]:
    """Seconds until the runtime lies in the cache under its name, and until the model is served."""
    port, node_port = free_ports(2)
    started = time.monotonic()
    with machine.terminal(*_start(port, node_port), VRM_CACHE_DIR=str(cache)) as opened:
        watch_until(opened, lambda: _has_runtime(cache), "the unpacked runtime")
        unpacked_s = time.monotonic() - started
        wait_ready(opened, f"http://127.0.0.1:{port}")
        ready_s = time.monotonic() - started
        _end(opened)
    shutil.rmtree(cache)
    return unpacked_s, ready_s


def _has_runtime(cache: Path) -> bool:
    return any(path.is_dir() for path in cache.glob("runtime-*"))


def _start(port: int, node_port: int) -> list[str]:
    return ["start", "--master", "--port", str(port), "--node-port", str(node_port)]


def _end(opened: Terminal) -> None:
    opened.interrupt()
    opened.end(END_S)


def _small_verb(places: Places, verb: Sequence[str], repetitions: int) -> Row:
    """One run of each that does not count, then in turn."""
    binary, venv = _in_turn(places, lambda machine: machine.run(*verb).elapsed_s, repetitions)
    ratio = _ratio(binary, venv)
    return Row(
        f"vramancer {verb[0]}",
        binary,
        venv,
        f"≤ {SMALL_VERB_RATIO:g} x, ≤ {SMALL_VERB_S:g} s",
        ratio <= SMALL_VERB_RATIO and binary.middle <= SMALL_VERB_S,
        ratio,
    )


def _warm_start(places: Places, starts: int) -> Row:
    """One start of each that does not count: it unpacks, and founds the cluster."""
    binary, venv = _in_turn(places, _seconds_to_ready, starts)
    ratio = _ratio(binary, venv)
    return Row("start --master, to /ready", binary, venv, f"≤ {START_RATIO:g} x", ratio <= START_RATIO, ratio)


def _seconds_to_ready(machine: Machine) -> float:
    port, node_port = free_ports(2)
    started = time.monotonic()
    with machine.terminal(*_start(port, node_port)) as opened:
        wait_ready(opened, f"http://127.0.0.1:{port}")
        ready_s = time.monotonic() - started
        _end(opened)
    return ready_s


def _in_turn(places: Places, measured: Callable[[Machine], float], count: int) -> tuple[Measured, Measured]:
    for machine in (places.binary, places.venv):
        measured(machine)
    pairs = [(measured(places.binary), measured(places.venv)) for _ in range(count)]
    binary, venv = zip(*pairs, strict=True)
    return Measured("s", binary), Measured("s", venv)


def _ratio(binary: Measured, venv: Measured) -> float:
    """The middle one of the pairs' ratios: what slows the machine down for a while slows both of a pair."""
    return median(ours / theirs for ours, theirs in zip(binary.values, venv.values, strict=True))


def surroundings() -> dict[str, str]:
    """What the figures depend on; nothing that names the machine or its folders."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def write(rows: Sequence[Row], around: dict[str, str], folder: Path) -> str:
    """Writes binary.json and binary.md; the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"# The one-file program beside an ordinary Python\n\n{_words(around)}\n\n{table(rows, COMPARED)}"
    data = {**around, "rows": [row.to_json() for row in rows]}
    (folder / "binary.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / "binary.md").write_text(text, "utf-8")
    return text


def _words(around: dict[str, str]) -> str:
    return (
        f"{around['date']}, {around['cpu']}, {around['cores']} cores, {around['system']}, Python {around['python']}, "
        f"load {around['load']} before it began. "
        "Medians, with least and most; measured in turn. The ratio is the median of the pairs' ratios."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    for program in (options.file, options.venv):
        if not program.is_file():
            print(f"There is no {program}: make setup, make binary", file=sys.stderr)
            return 2
    signal.signal(signal.SIGTERM, _stop)
    root = Path(tempfile.mkdtemp(prefix="vramancer-bench-"))
    try:
        around = surroundings()  # before: afterwards, the load is our own
        rows = measure(_places(root, options), _counts(options), lambda words: print(f"… {words}", flush=True))
    finally:
        remove(root)
    print("\n" + write(rows, around, options.out))
    return 0


def _places(root: Path, options: argparse.Namespace) -> Places:
    return Places(
        Machine(root / "binary", (str(options.file.absolute()),)).made(),
        Machine(root / "venv", (str(options.venv.absolute()),)).made(),
    )


def _counts(options: argparse.Namespace) -> Counts:
    return Counts(options.repetitions, options.starts, options.first_starts)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.binary", description="The one-file program, measured.")
    parser.add_argument("file", type=Path, nargs="?", default=ROOT / "dist" / "vramancer-linux")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv" / "bin" / "vramancer", help="the one beside it")
    parser.add_argument("--repetitions", type=_at_least_one, default=9, help="of a small verb (default: 9)")
    parser.add_argument("--starts", type=_at_least_one, default=5, help="from the warm cache (default: 5)")
    parser.add_argument("--first-starts", type=_at_least_one, default=3, help="with an empty cache (default: 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args(arguments)


def _at_least_one(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 on")
    return int(text)


def _stop(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
