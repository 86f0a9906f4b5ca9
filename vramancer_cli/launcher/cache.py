"""The user's cache folder with the unpacked runtimes: whose it is, which are whole, which are in use, which may go.

One folder and one lock file per runtime. Who unpacks or removes one holds its lock alone; who runs out of it shares it.
Never a terminal.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from vramancer_cli.errors import VramancerError
from vramancer_cli.launcher.bundle import Payload
from vramancer_cli.launcher.payload import (
    ASIDE_PREFIX,
    MANIFEST_LIMIT_BYTES,
    MANIFEST_NAME,
    BrokenPayloadError,
    Manifest,
)
from vramancer_cli.runtime.claim import try_lock

RUNTIME_PREFIX: Final = "runtime-"
LOCK_SUFFIX: Final = ".lock"
PATIENCE_S: Final = 3.0
_POLL_S: Final = 0.05


class CacheFolderError(VramancerError):
    """The cache folder cannot be trusted."""

    hint = "Remove it, or name another folder in VRM_CACHE_DIR."


class CacheBusyError(VramancerError):
    """Another process unpacks the runtime, or runs out of a damaged one."""

    hint = "Wait for it, or end it ('vramancer stop') and try again."


@dataclass(frozen=True, slots=True)
class Unpacked:
    """One runtime in the cache. `in_use`: a process runs out of it, or unpacks it now."""

    name: str
    size_bytes: int
    current: bool
    in_use: bool


def default_folder() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("vramancer", appauthor=False)


def open_folder(path: Path) -> Path:
    """The cache folder, made where it is missing. Programs run out of it, so it must be this user's and nobody else's.

    Raises CacheFolderError.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = path.lstat()
    except OSError as error:
        raise CacheFolderError(f"The cache folder {path} cannot be made: {error.strerror}.") from error
    if not stat.S_ISDIR(facts.st_mode):
        raise CacheFolderError(f"The cache folder {path} is not a folder of its own but a link or a file.")
    if os.name == "posix":
        _check_owner(path, facts)
    return path


def _check_owner(path: Path, facts: os.stat_result) -> None:
    if facts.st_uid != os.geteuid():
        raise CacheFolderError(f"The cache folder {path} belongs to another user.")
    if facts.st_mode & 0o022:
        raise CacheFolderError(
            f"Other users may write into the cache folder {path}.",
            hint=f"If nobody else did, run 'chmod 700 {path}' and 'vramancer cache clean --all'.",
        )
    if facts.st_mode & 0o077:
        path.chmod(0o700)


def runtime_folder(cache: Path, payload: Payload) -> Path:
    return cache / payload.name


def is_whole(folder: Path, payload: Payload) -> bool:
    """Whether every file is there with its size. The hash was checked when it was unpacked."""
    import hashlib

    try:
        with (folder / MANIFEST_NAME).open("rb") as file:
            data = file.read(MANIFEST_LIMIT_BYTES)
        if hashlib.sha256(data).hexdigest() != payload.manifest_digest:
            return False
        manifest = Manifest.decode(data)
        sized = all((folder / path).lstat().st_size == size for path, size in manifest.files.items())
        return sized and all(str((folder / path).readlink()) == target for path, target in manifest.links.items())
    except (OSError, BrokenPayloadError):
        return False


@contextmanager
def alone(cache: Path, name: str) -> Generator[bool]:
    """Holds the runtime `name` alone, for making or removing it; False where somebody makes it or runs out of it."""
    with _lock_file(cache, name) as file:
        yield try_lock(file)


def hold(cache: Path, name: str, patience_s: float = PATIENCE_S) -> BinaryIO | None:
    """Shares the runtime's lock until the returned file is closed or this process ends.

    None where somebody makes or removes it; who only looks whether it is in use is waited for.
    """
    until = time.monotonic() + patience_s
    file = _lock_file(cache, name)
    while not try_lock(file, shared=True):
        if time.monotonic() >= until:
            file.close()
            return None
        time.sleep(_POLL_S)
    return file


def _lock_file(cache: Path, name: str) -> BinaryIO:
    try:
        return (cache / f"{name}{LOCK_SUFFIX}").open("ab")
    except OSError as error:
        raise CacheFolderError(f"The cache folder {cache} cannot be written: {error.strerror}.") from error


def runtimes(cache: Path, current: str | None) -> list[Unpacked]:
    """What lies in the cache, the current one first."""
    if not cache.is_dir():
        return []
    names = {path.name for path in cache.iterdir() if path.name.startswith(RUNTIME_PREFIX) and path.is_dir()}
    found = [Unpacked(name, _size_bytes(cache / name), name == current, is_busy(cache, name)) for name in names]
    return sorted(found, key=lambda runtime: (not runtime.current, runtime.name))


def _size_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def is_busy(cache: Path, name: str) -> bool:
    """Whether a process runs out of this runtime, or makes or removes it."""
    with alone(cache, name) as free:
        return not free


def remove(cache: Path, name: str) -> bool:
    """Removes one runtime and what an interrupted unpacking of it left. False where it is in use."""
    with alone(cache, name) as free:
        if free:
            remove_leftovers(cache, name)
            set_aside(cache / name)
    if free:
        (cache / f"{name}{LOCK_SUFFIX}").unlink(missing_ok=True)
    return free


def set_aside(folder: Path) -> None:
    """Removes a runtime's folder: renamed first, so that no half of it is ever found under its name."""
    if not folder.exists():
        return
    aside = folder.with_name(f"{ASIDE_PREFIX}{folder.name}-old")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def remove_leftovers(cache: Path, name: str) -> None:
    """What an unpacking that was killed left behind. Only for who holds the lock."""
    for path in _leftovers(cache, name):
        shutil.rmtree(path, ignore_errors=True)


def _leftovers(cache: Path, name: str) -> Iterator[Path]:
    with suppress(OSError):
        yield from cache.glob(f"{ASIDE_PREFIX}{name}-*")
