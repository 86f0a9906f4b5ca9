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
        if not try_lock(file):
            raise FolderTakenError(f"Another node runs out of {folder}.")
        yield


def try_lock(file: BinaryIO, *, shared: bool = False) -> bool:
    """Locks `file` until it is closed or the process ends; False where another process is in the way.

    Windows has no shared lock: there a shared one is none. Neither is one on a file system without locks.
    """
    try:
        _lock(file, shared)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _lock(file: BinaryIO, shared: bool) -> None:
    if sys.platform == "win32":
        import msvcrt

        if not shared:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        return
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError:
        return
