"""Verbs as a person runs them: real processes of this program, with pipes or on a pseudo-terminal."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from build_scripts import pseudo_terminal
from build_scripts.pseudo_terminal import Terminal as Terminal

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
    ours = {"VRM_STATE_DIR": str(folder), "VRM_CONFIG": os.devnull}  # nor of this machine's config file
    return {**kept, **ours, "COLUMNS": "80", "TERM": "xterm-256color", **more}


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


@contextmanager
def terminal(folder: Path, *arguments: str, **more: str) -> Iterator[Terminal]:
    with pseudo_terminal.terminal([*PROGRAM, *arguments], environment(folder, **more)) as opened:
        yield opened


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
