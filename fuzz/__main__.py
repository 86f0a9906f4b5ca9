"""The command line: which door, how many inputs, from which seed. Ends with 1 when anything was found."""

from __future__ import annotations

import argparse
import random
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from fuzz.findings import CRASHES, Tally


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    seed: int = secrets.randbits(32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    if options.replay is not None:
        return _replay(options.replay)
    if options.case is not None:
        return _one_case(options.part, seed, options.case)
    if options.part == "frames" and options.coverage:
        from fuzz import coverage

        return 0 if coverage.run(options.frames, seed, CRASHES) else 1
    tallies = [
        _run(part, options, seed) for part in ("frames", "handshakes", "requests") if options.part in (part, "all")
    ]
    print("\n" + "\n".join(tally.summary() for tally in tallies))
    found = sum(len(tally.findings) for tally in tallies)
    print(f"{found} findings" + (f", in {CRASHES}" if found else ""))
    return 1 if found else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m fuzz", description=__doc__)
    parser.add_argument("part", choices=("frames", "handshakes", "requests", "all"))
    parser.add_argument("--frames", type=int, default=1_000_000, help="how many frames")
    parser.add_argument("--handshakes", type=int, default=20_000, help="how many handshakes")
    parser.add_argument("--requests", type=int, default=20_000, help="how many HTTP requests")
    parser.add_argument("--seed", type=int, help="repeat an earlier run (default: a new one, printed)")
    parser.add_argument("--case", type=int, help="only this case of the seed's")
    parser.add_argument("--replay", type=Path, help="a stream of frames from a file of fuzz/crashes or of the corpus")
    parser.add_argument("--coverage", action="store_true", help="frames: guided by coverage, with atheris")
    parser.add_argument(
        "--only", choices=("raw", "api", "both"), default="both", help="requests: raw bytes, or schemathesis"
    )
    return parser


def _run(part: str, options: argparse.Namespace, seed: int) -> Tally:
    """Each part imports what it needs: the frames need no model."""
    print(f"{part}: {getattr(options, part):,}", flush=True)
    if part == "frames":
        from fuzz import frames

        return frames.run(options.frames, seed)
    if part == "handshakes":
        from fuzz import handshakes

        return handshakes.run(options.handshakes, seed)
    from fuzz import requests

    return requests.run(options.requests, seed, options.only)


def _replay(path: Path) -> int:
    from fuzz import frames

    frames.replay(path.read_bytes())
    print("nothing found")
    return 0


def _one_case(part: str, seed: int, number: int) -> int:
    """Outside every net: what breaks is a traceback here."""
    if part == "frames":
        from fuzz import frames

        case = frames.make_case(seed, number)
        print(frames.check(case, random.Random((seed << 41) + number)))
    elif part == "handshakes":
        from fuzz import handshakes

        return 1 if handshakes.run(1, seed, first=number).findings else 0
    else:
        from fuzz import requests

        requests.replay(seed, number)
    return 0


if __name__ == "__main__":
    sys.exit(main())
