"""What the steps of the smoke test share: two machines, what runs on them, and how a step says what is wrong."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from build_scripts.frozen_program import Log, Machine
from build_scripts.leftovers import left_after, remove, strangers
from build_scripts.pseudo_terminal import Terminal, plain

END_S: Final = 20.0
ANY_PORTS: Final = ("--port", "0", "--node-port", "0")
START: Final = ("start", "--master", *ANY_PORTS)
NOT_MADE: Final = ("nothing", "work")


class StepError(Exception):
    """A step did not find what it should."""


def expect(right: bool, words: str) -> None:
    """Raises StepError with `words` where something is not right."""
    if not right:
        raise StepError(words)


@dataclass
class Scene:
    """`desk` founds the cluster, `attic` joins it. What a step opens for later steps goes onto `stack`."""

    root: Path
    program: Path
    log: Log
    desk: Machine
    attic: Machine
    stack: ExitStack
    head: Terminal | None = None
    worker: Terminal | None = None
    api_url: str = ""
    code: str = ""

    def machine(self, name: str) -> Machine:
        """One more machine, with the same file."""
        return Machine.with_copy(self.root / name, self.program, self.log)

    def status(self) -> dict[str, Any]:
        """What `status --json` says on the desk. Raises StepError."""
        ran = self.desk.run("status", "--json")
        expect(ran.code == 0, f"'status --json' ended with {ran.code}")
        return ran.json()


Step = Callable[[Scene], str]
"""Does one thing as a person would, and returns a few words about it, or "". Raises StepError, ScreenError, OSError."""


@contextmanager
def scene(root: Path, program: Path) -> Generator[Scene]:
    """On the way out, however it went, nothing runs any more and `root` is gone."""
    log = Log()
    try:
        with ExitStack() as stack:
            desk, attic = (Machine.with_copy(root / name, program, log) for name in ("desk", "attic"))
            yield Scene(root, program, log, desk, attic, stack)
    finally:
        remove(root)


def card_of(opened: Terminal, deadline_s: float) -> str:
    """The ready card of a master, and what was written before it."""
    return plain(opened.see("answers at", deadline_s) + opened.see("Ctrl-C"))


def wait_for(done: Callable[[], bool], words: str, deadline_s: float, poll_s: float = 0.3) -> None:
    """Raises StepError with `words` and the time."""
    until = time.monotonic() + deadline_s
    while not done():
        expect(time.monotonic() < until, f"{words} within {deadline_s:.0f} s")
        time.sleep(poll_s)


def expect_refusal(code: int, err: str, wanted_code: int = 1) -> str:
    """That it ended with one line that says why; that line."""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    expect(code == wanted_code, f"exit code {code}, not {wanted_code}")
    expect(len(errors) == 1 and err.splitlines()[-1] == errors[0], "it did not end with one line that begins 'error: '")
    expect("Traceback" not in err, "a traceback was shown")
    return errors[0]


def expect_nothing_left(machine: Machine, deadline_s: float = 5.0) -> None:
    """No process, an empty TMPDIR, and in HOME only the cache and the state folder."""
    left = left_after(machine.folder, deadline_s)
    expect(not left, f"still running: {', '.join(_words(process) for process in left)}")
    expect(not strangers(machine.temporary, ()), f"left in TMPDIR: {strangers(machine.temporary, ())[:5]}")
    own = [str(place.relative_to(machine.home)) for place in (machine.cache, machine.state)]
    expect(not strangers(machine.home, own), f"left in HOME: {strangers(machine.home, own)[:5]}")
    for name in NOT_MADE:
        left_files = strangers(machine.folder / name, ())
        expect(not left_files, f"left in the folder '{name}': {left_files[:5]}")


def expect_no_halves(machine: Machine) -> None:
    """Nothing in the cache but whole runtimes and their lock files."""
    names = [path.name for path in machine.cache.iterdir()] if machine.cache.exists() else []
    odd = [name for name in names if re.fullmatch(r"runtime-[0-9a-f]{16}(\.lock)?", name) is None]
    expect(not odd, f"left in the cache: {odd}")


def _words(process: Any) -> str:
    with contextlib.suppress(Exception):
        return f"pid {process.pid} {' '.join(process.cmdline())[:80]}"
    return f"pid {process.pid}"
