"""From this process to the runtime: the same command line, environment, terminal, exit code and signals.

On POSIX the process becomes the runtime. Windows cannot do that: there the launcher stays as its parent, in one job.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Final, NoReturn

from vramancer_cli.errors import VramancerError
from vramancer_cli.launcher import cache
from vramancer_cli.launcher.bundle import bundle
from vramancer_cli.launcher.cache import RUNTIME_PREFIX

_LIBRARY_PATHS: Final = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LIBPATH")
TORCH_CACHE: Final = "torch-cache"
SAME_PRESS_S: Final = 0.15
_held: Final[list[BinaryIO | None]] = []
"""Open until this process ends."""


class HandoverError(VramancerError):
    """The unpacked runtime does not start."""

    hint = "Run 'vramancer cache clean --all' and try again; some systems forbid programs in the cache folder."


def become(program: Path, arguments: Sequence[str], lock: BinaryIO) -> NoReturn:
    """Runs `program` in this process's place. `lock` stays locked for as long as it runs. Raises HandoverError."""
    command = [str(program), *arguments]
    environment = runtime_environment(os.environ, (_runtime_of(program) or program.parent) / TORCH_CACHE)
    try:
        if sys.platform == "win32":
            from vramancer_cli.launcher.windows_job import run_in_job

            sys.exit(run_in_job(command, environment))
        os.set_inheritable(lock.fileno(), True)
        os.execve(program, command, environment)  # noqa: S606  # the runtime whose hash this program was built with
    except OSError as error:
        raise HandoverError(f"The unpacked runtime {program} does not start: {error.strerror}.") from error


def runtime_environment(environment: Mapping[str, str], torch_cache: Path) -> dict[str, str]:
    """What the user had before PyInstaller's bootloader put the launcher's own folder in, and the word to begin anew.

    `torch_cache`: a folder that torch makes while it is imported; unless told, it would leave it in /tmp.

    Source: PyInstaller manual, "Run-time Information" (LD_LIBRARY_PATH) and PYINSTALLER_RESET_ENVIRONMENT.
    """
    kept = {name: value for name, value in environment.items() if name not in _LIBRARY_PATHS}
    for name in _LIBRARY_PATHS:
        original = kept.pop(f"{name}_ORIG", None)
        if original is not None:
            kept[name] = original
    return {"TORCHINDUCTOR_CACHE_DIR": str(torch_cache), **kept, "PYINSTALLER_RESET_ENVIRONMENT": "1"}


def enter_frozen() -> None:
    """What a frozen program does first: signals as a person means them, and a runtime is marked as in use."""
    if os.name == "posix":
        _count_each_press_once()
    frozen = bundle()
    if frozen is not None and frozen.kind == "runtime":
        _held.append(hold_own(Path(sys.executable)))


def hold_own(program: Path) -> BinaryIO | None:
    """The shared lock of the runtime that `program` lies in, so that 'cache clean' sees that it is in use."""
    folder = _runtime_of(program)
    return cache.hold(folder.parent, folder.name) if folder else None


def _runtime_of(program: Path) -> Path | None:
    """The folder in the cache that `program` lies in."""
    return next((folder for folder in program.parents if folder.name.startswith(RUNTIME_PREFIX)), None)


def _count_each_press_once() -> None:
    """Ctrl-C reaches this process twice: from the terminal, and passed on by the one-file bootloader, its parent."""
    pressed_s = -SAME_PRESS_S

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed_s
        before_s, pressed_s = pressed_s, time.monotonic()
        if pressed_s - before_s >= SAME_PRESS_S:
            signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, press)
