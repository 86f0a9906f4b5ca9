"""The terminal: where notes and data go, what may be printed, and how a person is asked.

Data goes to stdout; everything said to a person on the side goes to stderr. Never imports torch or transport.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rich.console import Console, RenderableType

from vramancer_cli.errors import SHOWN, UsageError


def out() -> Console:
    """The console on stdout: plain text where stdout is no terminal."""
    return Console(highlight=False, emoji=False)


def notes() -> Console:
    """The console on stderr, for what is not the answer."""
    return Console(stderr=True, highlight=False, emoji=False)


def has_person() -> bool:
    """Whether a question would reach somebody who can answer it."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def plain(text: str, *, lines: bool = False) -> str:
    """`text` without control characters, so that no name and no answer can command the terminal."""
    kept = "\n\t" if lines else ""
    return "".join(c for c in text if c.isprintable() or c in kept or c == "\u200d")


def show(renderable: RenderableType) -> None:
    """Prints to stdout; where that is no terminal, without spaces at the ends of lines."""
    console = out()
    if console.is_terminal:
        console.print(renderable)
        return
    with console.capture() as captured:
        console.print(renderable)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))
    sys.stdout.flush()


def write_json(data: Any, *, one_line: bool = False) -> None:
    sys.stdout.write(json.dumps(data, indent=None if one_line else 2, ensure_ascii=False) + "\n")
    sys.stdout.flush()


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """A spinner with `text` on a terminal, one line of text elsewhere."""
    console = notes()
    if not console.is_terminal:
        console.print(text, markup=False)
        yield
        return
    with console.status(text):
        yield


def ask(question: str) -> str:
    """One line from a person. Raises UsageError at the end of the input."""
    console = notes()
    console.print(question, end=" ", markup=False, soft_wrap=True)
    try:
        return input().strip()
    except EOFError:
        console.print()
        raise UsageError("The input ended before an answer came.") from None


def choose(title: str, choices: Sequence[str]) -> int:
    """The index of the choice that a person picks from a numbered list."""
    console = notes()
    console.print(title, markup=False)
    for number, choice in enumerate(choices, start=1):
        console.print(f"  {number}  {plain(choice)}", markup=False, soft_wrap=True)
    while True:
        answer = ask(f"Which one? (1-{len(choices)})")
        if answer.isascii() and answer.isdigit() and 1 <= int(answer[:4]) <= len(choices):
            return int(answer) - 1
        console.print(f"A number from 1 to {len(choices)}, please.", markup=False)


def show_error(error: BaseException) -> None:
    """The same line as the doorbell's, for an error after which the verb goes on."""
    hint = error.hint if isinstance(error, SHOWN) else ""
    notes().print(" ".join(f"error: {error} {hint}".split()), markup=False, soft_wrap=True, style="red")


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C counts even where a library swallows it, as some do while they are being imported."""
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        (before if callable(before) else signal.default_int_handler)(number, frame)

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, press)
    try:
        yield
    except BaseException:
        if not pressed:
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
