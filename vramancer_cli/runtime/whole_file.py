"""A small file that is read whole and written whole: after a crash there is the old one or the new one.

It is written anew beside the old one, synced, and put in its place. Files are 0600, their folder 0700.
Only the standard library here: the small verbs import this.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from vramancer_cli.errors import VramancerError

FILE_LIMIT_BYTES: Final = 64 * 1024


class StateFolderError(VramancerError):
    """The state folder cannot be used."""

    hint = "Name another folder with --state-dir, or move the broken file away."


def read(path: Path) -> bytes | None:
    """All of it; None where there is no such file. Raises StateFolderError, also above FILE_LIMIT_BYTES."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_LIMIT_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateFolderError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > FILE_LIMIT_BYTES:
        raise broken(path, "it is too long")
    return data


def write(path: Path, data: bytes) -> None:
    """Puts `data` in place of what `path` held, and makes its folder. Raises StateFolderError, the old file intact."""
    try:
        make_private(path.parent)
        _replace(path, data)
    except OSError as error:
        raise StateFolderError(f"{path} cannot be written: {error.strerror}.") from error


def broken(path: Path, why: str) -> StateFolderError:
    """What to raise for a file whose content is not what it should be."""
    return StateFolderError(f"{path} is broken ({why.rstrip('.')}); it was left as it is.")


def make_private(folder: Path) -> None:
    """A folder that only this user can look into. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.name == "posix" and folder.stat().st_mode & 0o077:
        folder.chmod(0o700)


def _replace(target: Path, data: bytes) -> None:
    """Raises OSError, and then leaves `target` as it was."""
    handle, new = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(new).replace(target)
    except OSError:
        Path(new).unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the renaming itself durable, where a folder can be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
