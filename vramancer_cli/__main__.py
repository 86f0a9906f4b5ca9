"""The doorbell: what runs first, and where every error becomes one line and an exit code.

Knows no verb itself. Anything that is not in errors.SHOWN is a bug, and shows its traceback.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from typing import TextIO

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code."""
    multiprocessing.freeze_support()  # first: in a frozen program, this call is where a child process ends up
    from commands.app import run
    from vramancer_cli.errors import SHOWN

    _never_fail_on_characters()
    if getattr(sys, "frozen", False):
        from vramancer_cli.launcher.handover import enter_frozen

        enter_frozen()
    try:
        code = run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
    except SHOWN as error:
        _say(f"error: {error} {error.hint}".rstrip())
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_gone()
    return code


def _say(line: str) -> None:
    sys.stderr.write(" ".join(line.split()) + "\n")


def _never_fail_on_characters() -> None:
    """A pipe on Windows is cp1252: what it cannot show becomes '?', not a traceback in the middle of an answer."""
    for stream in (sys.stdout, sys.stderr):
        _replace_unknown(stream)


def _replace_unknown(stream: TextIO) -> None:
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def _reader_gone() -> int:
    """`vramancer nodes | head -1`: no message, and nothing left for the interpreter to flush at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def _exit() -> None:
    sys.exit(main())


if __name__ == "__main__":
    _exit()
