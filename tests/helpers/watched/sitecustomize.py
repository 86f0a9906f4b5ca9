"""In every Python process that the tests start, and in the tests' own: unpickling is stopped and written down.

Python imports a module of this name by itself at its start, when its folder is on PYTHONPATH (tests/conftest.py puts it
there). Must import nothing that a small verb does not import anyway.

An audit hook sees a pickle at work when it asks for a class or a function, which every payload does, and files when
they are opened: a pickled checkpoint cannot be read unopened, whatever reads it.
"""

from __future__ import annotations

import os
import sys
from types import FrameType
from typing import Final

LOG_VARIABLE: Final = "UNPICKLING_LOG"
"""Names the file that violations are appended to; without it, nothing is watched."""

_SUFFIXES: Final = (".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_BINARIES: Final = ("model", "weights", "tokenizer", "training_args", "adapter")
"""How the names of pickled .bin files begin or go on; other .bin files are no pickles."""
_LIBRARIES: Final = (sys.prefix, sys.base_prefix, "/usr/", "/lib", "/proc/", "/sys/")
_SPAWN: Final = os.path.join(os.path.dirname(os.__file__), "multiprocessing", "spawn.py")  # noqa: PTH118, PTH120
"""The one reader that may: a spawned child takes over from its own parent, through a pipe, what to run."""


class UnpicklingError(RuntimeError):
    """Something here was about to unpickle."""


def _install(log: str) -> None:
    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "pickle.find_class":
            caller = sys._getframe(1)
            if caller.f_code.co_filename != _SPAWN:
                _refuse(log, f"{arguments} is unpickled", caller)
        elif event == "import":
            sys.modules.pop("sitecustomize", None)  # some tests look at which modules a verb has loaded
        elif event == "open" and _reads_a_pickle(*arguments):
            _refuse(log, f"{arguments[0]} is opened", sys._getframe(1))

    sys.addaudithook(hook)


def _reads_a_pickle(path: object, mode: object, flags: object) -> bool:
    if not isinstance(path, str) or path.startswith(_LIBRARIES):
        return False
    name = path.rpartition(os.sep)[2]
    if not name.endswith(_SUFFIXES) and not (name.endswith(".bin") and any(part in name for part in _BINARIES)):
        return False
    if isinstance(mode, str):
        return not set(mode) & set("wax")
    return isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) == 0


def _refuse(log: str, what: str, caller: FrameType | None) -> None:
    where = []
    while caller is not None and len(where) < 12:
        where.append(f"{caller.f_code.co_filename}:{caller.f_lineno}")
        caller = caller.f_back
    line = f"process {os.getpid()}: {what}, by {' < '.join(where)}\n"
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode(errors="replace"))
    os.close(descriptor)
    raise UnpicklingError(what)


if os.environ.get(LOG_VARIABLE):
    _install(os.environ[LOG_VARIABLE])
