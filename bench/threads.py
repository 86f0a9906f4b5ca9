"""How CPU threads wait for each other: sleeping (as VRAMancer sets it) against spinning (OpenMP's default).

    python -m bench.threads [--tokens N] [--repetitions N]

Decodes with the built-in model on as many threads as there are cores, in one process and in two at once, as on a
machine whose owner does something else too. Both ways in turn; prints a Markdown table of tokens/s.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Final

WAYS: Final = ("sleeping", "spinning")
_PROMPT: Final = tuple(range(3, 35))
_CHILD_S: Final = 900


def decode(way: str, tokens: int) -> float:
    """Tokens/s of one stream in this process, after a first short run."""
    from vramancer_cli import engine

    if way == "spinning":
        del os.environ[engine.WAIT_POLICY]  # before torch is loaded
    from vramancer_cli.engine.trial import greedy_tokens
    from vramancer_cli.models.catalog import builtin_folder

    greedy_tokens(builtin_folder(), _PROMPT, 4, "cpu", None)
    before = time.perf_counter()
    greedy_tokens(builtin_folder(), _PROMPT, 1, "cpu", None)
    started = time.perf_counter()
    greedy_tokens(builtin_folder(), _PROMPT, tokens + 1, "cpu", None)
    return tokens / (time.perf_counter() - started - (started - before))  # loading and the prompt left out


def together(way: str, processes: int, tokens: int) -> float:
    """Tokens/s of the slowest of some processes that run at once."""
    command = [sys.executable, "-m", "bench.threads", "--way", way, "--tokens", str(tokens)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return min(float(child.communicate(timeout=_CHILD_S)[0]) for child in running)


def row(processes: int, repetitions: int, tokens: int) -> str:
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repetitions):
        for way in WAYS:
            rates[way].append(together(way, processes, tokens))
    sleeping, spinning = (median(rates[way]) for way in WAYS)
    return f"| {processes} | {sleeping:.1f} | {spinning:.1f} | {sleeping / spinning:.2f} x |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.way:
        print(decode(options.way, options.tokens))
        return 0
    print("| processes at once | sleeping, tokens/s | spinning, tokens/s | ratio |\n| --- | --- | --- | --- |")
    for processes in (1, 2):
        print(row(processes, options.repetitions, options.tokens), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
