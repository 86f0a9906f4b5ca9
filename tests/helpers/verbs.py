"""Verbs as a person runs them: real processes of this program, with pipes or on a pseudo-terminal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-m", "vramancer_cli"]
DEADLINE_S = 30.0
_COLOUR_WISHES = ("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS")


@dataclass(frozen=True)
class Ran:
    """What a verb left behind."""

    code: int
    out: str
    err: str

    @property
    def error_lines(self) -> list[str]:
        return self.err.splitlines()


def environment(folder: Path, **more: str) -> dict[str, str]:
    """This machine's, without its own VRM_ settings and colours; 80 columns wide."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("VRM_") and k not in _COLOUR_WISHES}
    return {**kept, "VRM_STATE_DIR": str(folder), "COLUMNS": "80", "TERM": "xterm-256color", **more}


async def run_verb(folder: Path, *arguments: str, stdin: str = "", **more: str) -> Ran:
    """Runs to its end, with `more` in its environment, while this loop serves others."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(folder, **more),
    )
    out, err = await asyncio.wait_for(process.communicate(stdin.encode()), DEADLINE_S)
    assert process.returncode is not None
    return Ran(process.returncode, out.decode(), err.decode())


@dataclass
class Terminal:
    """A verb on a pseudo-terminal of 80 columns; `screen` is all that it wrote."""

    process: subprocess.Popen[bytes]
    handle: int
    screen: str = field(default="")

    def see(self, text: str, deadline_s: float = DEADLINE_S) -> str:
        """Waits until `text` is written after what was seen before, and returns all up to its end."""
        until = time.monotonic() + deadline_s
        while text not in self.screen:
            assert time.monotonic() < until, f"{text!r} did not come after:\n{self.screen}"
            if select.select([self.handle], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    self.screen += os.read(self.handle, 65536).decode(errors="replace")
            elif self.process.poll() is not None:
                raise AssertionError(f"it ended with {self.process.returncode} before {text!r}:\n{self.screen}")
        seen, _, self.screen = self.screen.partition(text)
        return seen + text

    def type(self, text: str) -> None:
        os.write(self.handle, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, as the terminal sends it, and no faster than a person: Python sees one that comes in the moment
        between a prompt and its reading only at the next key."""
        time.sleep(0.2)
        self.type("\x03")

    def end(self, deadline_s: float = DEADLINE_S) -> int:
        until = time.monotonic() + deadline_s
        while self.process.poll() is None:  # a full terminal would block it
            assert time.monotonic() < until, f"it does not end:\n{self.screen}"
            if select.select([self.handle], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    self.screen += os.read(self.handle, 65536).decode(errors="replace")
        return self.process.returncode


@contextmanager
def terminal(folder: Path, *arguments: str, **more: str) -> Iterator[Terminal]:
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(folder, **more),
        preexec_fn=lambda: _own_terminal(theirs),
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait(10)
        os.close(ours)


def _own_terminal(handle: int) -> None:
    """Makes `handle` the process's controlling terminal, so that a Ctrl-C typed there becomes SIGINT."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(handle, termios.TIOCSCTTY, 0)


@asynccontextmanager
async def async_terminal(folder: Path, *arguments: str, **more: str) -> AsyncIterator[Terminal]:
    """As `terminal`; call its blocking methods with asyncio.to_thread, so that the server goes on."""
    with terminal(folder, *arguments, **more) as opened:
        yield opened


class InProcess:
    """A verb run in this process, through the doorbell: fast, for verbs that only read their command line."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        for name in set(os.environ) - set(environment(folder)):
            monkeypatch.delenv(name)
        for name, value in environment(folder).items():
            monkeypatch.setenv(name, value)

    def __call__(self, *arguments: str) -> Ran:
        from vramancer_cli.__main__ import main

        code = main(arguments)
        out, err = self._capsys.readouterr()
        return Ran(code, out, err)
