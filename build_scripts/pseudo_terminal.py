"""A program on a pseudo-terminal of 80 columns, as a person sits at it. Shared by the smoke test and the tests.

Unix only. Knows nothing of VRAMancer; pytest is never imported here.
"""

from __future__ import annotations

import codecs
import contextlib
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

DEADLINE_S: Final = 30.0
ROWS: Final = 40
COLUMNS: Final = 80
CLOSED: Final = -1
_READ_BYTES: Final = 65536
_CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class ScreenError(AssertionError):
    """The terminal did not show what it should, or the program did not end."""


@dataclass
class Terminal:
    """`screen` is what was written and not yet seen, `transcript` all that was written."""

    process: subprocess.Popen[bytes]
    handle: int
    screen: str = field(default="")
    transcript: str = field(default="")
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def see(self, text: str, deadline_s: float = DEADLINE_S) -> str:
        """Waits until `text` is written after what was seen before, and returns all up to its end.

        Raises ScreenError.
        """
        return self.see_one_of((text,), deadline_s)

    def see_one_of(self, texts: Sequence[str], deadline_s: float = DEADLINE_S) -> str:
        """As `see`, for whichever of `texts` comes first."""
        wanted = re.compile("|".join(re.escape(text) for text in texts))
        until = time.monotonic() + deadline_s
        while (found := wanted.search(self.screen)) is None:
            if time.monotonic() > until:
                raise ScreenError(f"{' or '.join(map(repr, texts))} did not come after:\n{self.screen}")
            if not self.read(0.1) and self.process.poll() is not None:
                raise ScreenError(f"it ended with {self.process.returncode} before {texts[0]!r}:\n{self.screen}")
        seen, self.screen = self.screen[: found.end()], self.screen[found.end() :]
        return seen

    def type(self, text: str) -> None:
        os.write(self.handle, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, as the terminal sends it, and no faster than a person: Python sees one that comes in the moment
        between a prompt and its reading only at the next key."""
        time.sleep(0.2)
        self.type("\x03")

    def end(self, deadline_s: float = DEADLINE_S) -> int:
        """The exit code, once it ended by itself. Raises ScreenError."""
        until = time.monotonic() + deadline_s
        while self.process.poll() is None:
            if time.monotonic() > until:
                raise ScreenError(f"it does not end:\n{self.screen}")
            self.read(0.05)  # a full terminal would block it
        self.read(0)
        return self.process.returncode

    def read(self, wait_s: float) -> bool:
        """Takes what was written, waiting at most `wait_s` for it; whether there was anything."""
        if self.handle == CLOSED or not select.select([self.handle], [], [], wait_s)[0]:
            return False
        try:
            text = self._decoder.decode(os.read(self.handle, _READ_BYTES))
        except OSError:  # EIO: nobody holds the other side any more
            time.sleep(wait_s)
            return False
        self.screen += text
        self.transcript += text
        return True


def plain(text: str) -> str:
    """`text` without colours and cursor movements; of a line that was written over again and again, the last state."""
    return "\n".join(_last_state(line) for line in _CONTROL.sub("", text).replace("\r\n", "\n").split("\n"))


def _last_state(line: str) -> str:
    return next((state for state in reversed(line.split("\r")) if state.strip()), "")


@contextmanager
def terminal(command: Sequence[str], environment: Mapping[str, str], folder: Path | None = None) -> Iterator[Terminal]:
    """`command` on a terminal of its own, in `folder`. On the way out, what is left of its process group is killed."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        cwd=folder,
        preexec_fn=lambda: _own_terminal(theirs),
    )
    os.close(theirs)
    opened = Terminal(process, ours)
    try:
        yield opened
    finally:
        # A one-file program is two processes: killing only the one that we started would leave the other.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        while opened.read(0):
            pass
        os.close(ours)
        opened.handle = CLOSED


def _own_terminal(handle: int) -> None:
    """Makes `handle` the process's controlling terminal, so that a Ctrl-C typed there becomes SIGINT."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(handle, termios.TIOCSCTTY, 0)
