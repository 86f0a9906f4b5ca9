"""One node per state folder: a lock that the system takes back when the process ends, however it ends.

The run file says who runs here, but only once that node is up: two that start at once would fight over one identity.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from vramancer_cli.errors import VramancerError

LOCK_FILE: Final = "lock"


class FolderTakenError(VramancerError):
    """Another node runs out of this state folder."""

    hint = "Stop it with 'vramancer stop', or name another folder with --state-dir."


@contextmanager
def claimed(folder: Path) -> Generator[None]:
    """Holds `folder` for this process. Raises FolderTakenError, OSError where the folder cannot be written."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("ab") as file:
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            raise FolderTakenError(f"Another node runs out of {folder}.") from None
        yield


def _lock(file: BinaryIO) -> None:
    """Raises BlockingIOError or PermissionError where another process has it. A file system without locks: no lock."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError:
        return
