"""Both ways to join, a case at a time: which kind, by which world, and what counts as an honest refusal."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from fuzz import issuing, joining
from fuzz.findings import CRASHES, BrokenPromiseError, Finding, Tally, deadline, told

PARTS: Final[tuple[Any, ...]] = (joining, issuing)
FRESH_EVERY: Final = 1000


def run(
    count: int, seed: int, crashes: Path = CRASHES, first: int = 0, progress: Callable[[str], None] = print
) -> Tally:
    tally = Tally("handshakes", seed)
    worlds: dict[str, Any] = {}
    for number in range(first, first + count):
        rng = random.Random((seed << 40) + number)
        part = PARTS[rng.random() < 0.4]
        kind: Callable[[Any, random.Random], str] = rng.choice(part.KINDS)
        if not worlds or number % FRESH_EVERY == 0:
            worlds = {module.__name__: module.World(random.Random(seed + number)) for module in PARTS}
            progress(f"  handshakes {number - first:,}")
        _run_one(part, kind, worlds[part.__name__], rng, f"handshakes:{seed}:{number}", tally, crashes)
        tally.done += 1
    return tally


def _run_one(
    part: Any,
    kind: Callable[[Any, random.Random], str],
    world: Any,
    rng: random.Random,
    name: str,
    tally: Tally,
    crashes: Path,
) -> None:
    """BaseException: a panic of the Rust below `cryptography` is no Exception."""
    try:
        with deadline():
            tally.kinds[kind(world, rng)] += 1
    except (KeyboardInterrupt, SystemExit):
        raise
    except part.REFUSES as error:
        tally.kinds[f"{kind.__name__}: {type(error).__name__}"] += 1
    except BaseException as error:
        _, seed, number = name.split(":")
        which = "promise broken" if isinstance(error, BrokenPromiseError) else "no named error"
        command = f"python -m fuzz handshakes --seed {seed} --case {number}   # {which} in {kind.__name__}"
        tally.add(Finding(told(error), name, command), crashes)
