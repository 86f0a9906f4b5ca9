"""The matrix over many families: in child processes, so that memory is given back and no family ends the others' run.

A child examines one family after the other and writes down each outcome at once, until it has grown too large or is
done; then another goes on where it stopped. What is written stays for the next run, as long as no code that it came
from has changed.

python -m tests.helpers.family_runs FOLDER FAMILY...     a child
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import psutil
import torch
import transformers
from transformers.utils import logging

from tests.helpers.family_matrix import Outcome, examine

ROOT: Final = Path(__file__).parents[2]
KEPT: Final = ROOT / "build" / "families"
MOST_BYTES: Final = 2 << 30
"""Of a child: torch and transformers take some 700 MB, and what single families leave behind adds up."""
FAMILY_S: Final = 900.0
_SOURCES: Final = ("vramancer_cli/engine/*.py", "vramancer_cli/models/*.py", "tests/helpers/*.py")


def outcomes(families: Sequence[str], folder: Path | None = None) -> list[Outcome]:
    """One for each family, in order; those that are kept in `folder` are not computed again."""
    folder = folder or KEPT / source_hash()
    folder.mkdir(parents=True, exist_ok=True)
    while left := [family for family in families if not _record(folder, family).is_file()]:
        print(f"{len(families) - len(left)} of {len(families)} families done", flush=True)
        _run_child(folder, left)
    print(f"{len(families)} of {len(families)} families done", flush=True)
    return [msgspec.msgpack.decode(_record(folder, family).read_bytes(), type=Outcome) for family in families]


def forget() -> None:
    """What is kept: the page has it now."""
    shutil.rmtree(KEPT, ignore_errors=True)


def source_hash() -> str:
    """Of all that an outcome depends on, but for the machine."""
    found = hashlib.sha256(f"{torch.__version__} {transformers.__version__}".encode())
    for path in sorted(path for pattern in _SOURCES for path in ROOT.glob(pattern)):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _run_child(folder: Path, left: list[str]) -> None:
    """Until it ends by itself. One that dies, or writes nothing for long, costs the family that it was at."""
    child = subprocess.Popen([sys.executable, "-m", __spec__.name, str(folder), *left], cwd=ROOT)
    try:
        why = _watch(child, folder, left)
    finally:
        child.kill()
        child.wait()
    at = next((family for family in left if not _record(folder, family).is_file()), None)
    if why and at:
        _write(folder, Outcome(at, reason=why))


def _watch(child: subprocess.Popen[bytes], folder: Path, left: list[str]) -> str:
    """Why it ended, where that was wrong."""
    done, since = 0, time.monotonic()
    while (code := child.poll()) is None:
        now = sum(_record(folder, family).is_file() for family in left)
        done, since = (now, time.monotonic()) if now != done else (done, since)
        if time.monotonic() - since > FAMILY_S:
            return f"not done after {FAMILY_S:.0f} s"
        time.sleep(0.5)
    return f"the process that examined it ended with {code}" if code else ""


def child(folder: Path, families: Sequence[str]) -> None:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for family in families:
        started_s = time.monotonic()
        outcome = examine(family)
        _write(folder, outcome)
        verdict = "exact" if outcome.exact else "NOT EXACT"
        verdict += "" if outcome.quantised_runs else ", not quantised"
        print(f"{family:24} {verdict} {outcome.reason}  {time.monotonic() - started_s:.1f} s", flush=True)
        if psutil.Process().memory_info().rss > MOST_BYTES:
            return


def _record(folder: Path, family: str) -> Path:
    return folder / f"{family}.msgpack"


def _write(folder: Path, outcome: Outcome) -> None:
    """Whole or not at all."""
    half = folder / f".{outcome.family}"
    half.write_bytes(msgspec.msgpack.encode(outcome))
    half.rename(_record(folder, outcome.family))


if __name__ == "__main__":
    child(Path(sys.argv[1]), sys.argv[2:])
