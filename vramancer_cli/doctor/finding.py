"""What a check finds, and how one is run: in a thread of its own with a deadline, whatever happens in it.

Knows nothing of what is checked. Never imports another room but errors.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from vramancer_cli.errors import SHOWN

State = Literal["ok", "warning", "failed"]

DEADLINE_S: Final = 30.0
_TICK_S: Final = 0.25
"""How long a wait may be in one piece: Windows lets Ctrl-C through only between waits."""
_MOST_CHARACTERS: Final = 400
_AGAIN: Final = "Install VRAMancer again."


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, as a sentence without its subject. `hint`: the next step, where there is one."""

    name: str
    state: State
    words: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a look at one thing gives; with the check's name it becomes a Finding."""

    words: str
    state: State = "ok"
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing to look at. `look` may block for `deadline_s` and may raise anything; `hint` is for such a surprise,
    unless it is a module that is missing."""

    name: str
    look: Callable[[], Observation]
    deadline_s: float = DEADLINE_S
    hint: str = _AGAIN

    def run(self) -> Finding:
        """Always a finding; what did not end in time is left behind on its thread."""
        found: queue.SimpleQueue[Observation] = queue.SimpleQueue()
        looking = threading.Thread(target=lambda: found.put(self._look()), name=f"check {self.name}", daemon=True)
        looking.start()
        until = time.monotonic() + self.deadline_s
        while looking.is_alive() and time.monotonic() < until:
            looking.join(_TICK_S)
        if found.empty():
            late = Observation(f"did not finish within {self.deadline_s:g} s", "failed", self.hint)
            return _finding(self.name, late)
        return _finding(self.name, found.get())

    def _look(self) -> Observation:
        try:
            return self.look()
        except SHOWN as error:
            return Observation(str(error), "failed", error.hint or self.hint)
        except BaseException as error:  # also what would end this thread without a word
            return Observation(surprise(error), "failed", _AGAIN if isinstance(error, ImportError) else self.hint)


def surprise(error: BaseException) -> str:
    """An error that nobody foresaw: its kind, its words, and the line of code that it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({'/'.join(Path(frames[-1].filename).parts[-2:])}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}".removesuffix(": ")[:_MOST_CHARACTERS] + where


def _finding(name: str, observed: Observation) -> Finding:
    return Finding(name, observed.state, " ".join(observed.words.split()), " ".join(observed.hint.split()))


def gib(size_bytes: int) -> str:
    """ "7.7 GiB" """
    return f"{size_bytes / 2**30:.1f} GiB"
