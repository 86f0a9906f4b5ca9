"""The program under test on a machine of its own: an empty HOME and TMPDIR, nothing on PATH, none of our settings.

For the smoke test and the measurements of the one-file program. Imports nothing of it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from build_scripts.pseudo_terminal import COLUMNS, ScreenError, Terminal, plain, terminal

UNPACKING: Final = "Unpacking the"
"""How the line begins that says so, with a bar on a terminal."""
DEADLINE_S: Final = 60.0
START_DEADLINE_S: Final = 120.0
_HTTP_S: Final = 10.0
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Ran:
    """A verb that ended."""

    arguments: tuple[str, ...]
    code: int
    out: str
    err: str
    elapsed_s: float

    def json(self) -> Any:
        """Raises ValueError."""
        return json.loads(self.out)

    def __str__(self) -> str:
        return f"$ vramancer {' '.join(self.arguments)}\n{self.out}{self.err}(exit code {self.code})"


@dataclass
class Log:
    """What was run since it began, and all that this wrote; terminals that stay open go on writing."""

    _ran: list[str] = field(default_factory=list[str])
    _terminals: list[tuple[str, Terminal, int]] = field(default_factory=list[tuple[str, Terminal, int]])

    def begin(self) -> None:
        self._ran.clear()
        self._terminals = [(title, t, len(t.transcript)) for title, t, _ in self._terminals if t.process.poll() is None]

    def add(self, ran: Ran) -> None:
        self._ran.append(str(ran))

    def watch(self, title: str, opened: Terminal) -> None:
        self._terminals.append((title, opened, 0))

    def text(self) -> str:
        return "\n".join([*self._ran, *map(_written, self._terminals)])


def _written(watched: tuple[str, Terminal, int]) -> str:
    title, opened, start = watched
    while opened.read(0):
        pass
    return f"$ {title}   (terminal)\n{plain(opened.transcript[start:])}"


@dataclass(frozen=True, slots=True)
class Machine:
    """`command` runs the program; `folder` holds all that it may see of a machine."""

    folder: Path
    command: tuple[str, ...]
    log: Log = field(default_factory=Log)

    @classmethod
    def with_copy(cls, folder: Path, program: Path, log: Log) -> Machine:
        """A machine with its own copy of the one-file program."""
        folder.mkdir(parents=True)
        copy = shutil.copy2(program, folder / program.name)
        return cls(folder, (str(copy),), log).made()

    def made(self) -> Machine:
        for place in (self.home, self.temporary, self.folder / "nothing", self.folder / "work"):
            place.mkdir(parents=True)
        return self

    @property
    def program(self) -> Path:
        return Path(self.command[0])

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def state(self) -> Path:
        return self.home / ".config" / "vramancer"

    @property
    def cache(self) -> Path:
        return self.home / ".cache" / "vramancer"

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "HOME": str(self.home),
            "PATH": str(self.folder / "nothing"),
            "TMPDIR": str(self.temporary),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "TERM": "xterm-256color",
            "COLUMNS": str(COLUMNS),
            **more,
        }

    def run(
        self, *arguments: str, deadline_s: float = DEADLINE_S, file_limit_bytes: int | None = None, **more: str
    ) -> Ran:
        """A verb to its end, with pipes. `file_limit_bytes`: no file may become larger, as on a full disk.

        Raises subprocess.TimeoutExpired, and then nothing of it runs any more.
        """
        started = time.monotonic()
        process = subprocess.Popen(
            [*self.command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(**more),
            cwd=self.folder / "work",
            start_new_session=True,
            preexec_fn=None if file_limit_bytes is None else lambda: _limit_files(file_limit_bytes),
        )
        try:
            out, err = process.communicate(timeout=deadline_s)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # the launcher's bootloader and its child
            raise
        elapsed_s = time.monotonic() - started
        ran = Ran(arguments, process.returncode, out.decode(errors="replace"), err.decode(errors="replace"), elapsed_s)
        self.log.add(ran)
        return ran

    @contextmanager
    def terminal(self, *arguments: str, **more: str) -> Iterator[Terminal]:
        """A verb on a terminal, which goes on until it ends or the block does."""
        command = [*self.command, *arguments]
        with terminal(command, self.environment(**more), self.folder / "work") as opened:
            self.log.watch(f"vramancer {' '.join(arguments)}", opened)
            yield opened


def _limit_files(most_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))


def wait_ready(opened: Terminal, api_url: str, deadline_s: float = START_DEADLINE_S) -> None:
    """Until the model is served there. Raises ScreenError."""
    watch_until(opened, lambda: answers(f"{api_url}/ready"), f"{api_url}/ready", deadline_s)


def watch_until(opened: Terminal, done: Callable[[], bool], what: str, deadline_s: float = START_DEADLINE_S) -> None:
    """Until `done()`, while the terminal is read: a full one would block its program. Raises ScreenError."""
    until = time.monotonic() + deadline_s
    while not done():
        if opened.process.poll() is not None:
            raise ScreenError(f"it ended with {opened.process.returncode}, {what} never came")
        if time.monotonic() > until:
            raise ScreenError(f"{what} did not come within {deadline_s:.0f} s")
        opened.read(_POLL_S)


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=_HTTP_S) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def ask(url: str, body: Any = None) -> tuple[str, str]:
    """(content type, text) of a 200; a POST of JSON where there is a body. Raises urllib.error.URLError."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} if data else {})
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        return str(answer.headers.get("Content-Type")), answer.read().decode()


def free_ports(count: int) -> Sequence[int]:
    """Different ports that nobody listens on just now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
