"""What a run found: findings with their input and the command that repeats them, and the counts of a run."""

from __future__ import annotations

import hashlib
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

CRASHES: Final = Path(__file__).parent / "crashes"
MOST_WRITTEN: Final = 20
CASE_DEADLINE_S: Final = 10.0


class HangError(Exception):
    """A case did not end within its deadline."""


class BrokenPromiseError(AssertionError):
    """Something came out that must never come out."""


def require(kept: bool, promise: str) -> None:
    """Raises BrokenPromiseError."""
    if not kept:
        raise BrokenPromiseError(promise)


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` happened in case `case`; `data` is the input, where there is one that says it all."""

    what: str
    case: str
    command: str
    data: bytes = b""

    def write(self, folder: Path = CRASHES) -> Path:
        """The input and beside it what it does and how to repeat it."""
        folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(self.data + self.case.encode()).hexdigest()[:12]
        path = folder / f"{self.case.split(':')[0]}-{digest}.bin"
        path.write_bytes(self.data)
        path.with_suffix(".txt").write_text(f"{self.command or self.case}\n\n{self.what}\n", encoding="utf-8")
        return path


@dataclass(slots=True)
class Tally:
    """The counts of one part of a run, and what it found."""

    part: str
    seed: int
    done: int = 0
    kinds: Counter[str] = field(default_factory=Counter[str])
    findings: list[Finding] = field(default_factory=list[Finding])
    started_s: float = field(default_factory=time.monotonic)

    def add(self, finding: Finding, folder: Path = CRASHES) -> None:
        self.findings.append(finding)
        if len(self.findings) <= MOST_WRITTEN:
            path = finding.write(folder)
            print(
                f"\n{self.part}: {finding.what.splitlines()[-1]}\n  {finding.command}\n  written to {path}", flush=True
            )

    def summary(self) -> str:
        took_s = time.monotonic() - self.started_s
        kinds = ", ".join(f"{name} {count:,}" for name, count in self.kinds.most_common())
        rate = self.done / took_s if took_s else 0.0
        return (
            f"{self.part}: {self.done:,} in {took_s:.0f} s ({rate:,.0f}/s), seed {self.seed}, "
            f"findings {len(self.findings)}\n  {kinds}"
        )


def told(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).strip()


@contextmanager
def deadline(seconds: float = CASE_DEADLINE_S) -> Generator[None]:
    """Raises HangError in a body that takes longer; where the system has no such timer, nothing watches."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: object) -> None:
        raise HangError(f"not done within {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
