"""What a service system is, as a value: a file, the text in it, and the commands that make it known and forgotten.

Pure: nothing here writes, runs or asks. Never a terminal, a room with a pulse, or anything but the standard library.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from vramancer_cli.errors import UsageError

SystemName = Literal["systemd", "launchd", "windows"]
Outcome = Literal["must", "may", "until_gone"]
"""A step must succeed; may fail (what it undoes need not be there); or is asked again until it fails."""

_UNWRITABLE: Final = {"Cc", "Cs", "Cn"}
"""Unicode categories: control characters, bytes that were no UTF-8, and what is no character at all."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whose service it is. `config`: where programs keep their settings; `application`: where this one does."""

    name: str
    user_id: int
    home: Path
    config: Path
    application: Path


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the system's own tools."""

    argv: tuple[str, ...]
    outcome: Outcome = "must"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command left behind. `code` is the exit code."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class ServiceState:
    """How the system sees the service. `detail` is its own word for it; `pid` None where it told none."""

    installed: bool
    enabled: bool
    running: bool
    detail: str
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class ServiceSystem:
    """How one system is told about the node.

    `render` turns the command that it shall run into the text of `file`, and raises UsageError for what cannot be
    written there. `install` runs once the file lies there, `remove` before it is deleted and `forget` afterwards.
    `probe` succeeds where the system answers this user; empty: it always does. `read` turns `file` lying there or not,
    and the answer to `query`, into a state.
    """

    name: SystemName
    file: Path
    encoding: Literal["utf-8", "utf-16"]
    render: Callable[[Sequence[str]], str]
    probe: tuple[str, ...]
    probe_hint: str
    install: tuple[Step, ...]
    remove: tuple[Step, ...]
    forget: tuple[Step, ...]
    query: tuple[str, ...]
    read: Callable[[bool, Answer], ServiceState]
    log_command: str
    when: str


def refuse_unwritable(command: Sequence[str], also: str = "") -> None:
    """Raises UsageError for a character that no service file can hold, or that is one of `also`."""
    for argument in command:
        for character in argument:
            if unicodedata.category(character) in _UNWRITABLE or character in also:
                raise UsageError(
                    f"A service's command line cannot hold {character!r}, as in {argument!r}.",
                    hint="Give the file or folder another name.",
                )
