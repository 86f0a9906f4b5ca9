"""The shelf: where nodes keep weights that came from a head, one folder per model, named for its digest.

Where they lie, how large they are, and their removal. Standard library only: the small verbs import this.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vramancer_cli.errors import ModelError
from vramancer_cli.runtime.claim import try_lock
from vramancer_cli.runtime.whole_file import make_private

SHELF_NAME: Final = "weights"
ABOUT_NAME: Final = "about.json"
_LOCK_SUFFIX: Final = ".lock"
_HASHES_SUFFIX: Final = ".hashes"
_ASIDE_PREFIX: Final = "removing-"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_ABOUT_MAX_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Kept:
    """One model's weights, whole or in part. `size_bytes`: what they take on the disk. `name` "" if unknown."""

    digest: str
    name: str
    size_bytes: int
    in_use: bool


def shelf_in(cache: Path) -> Path:
    return cache / SHELF_NAME


def copy_folder(shelf: Path, digest: str) -> Path:
    """Raises ModelError for what is no digest: it came from another machine, and becomes a path."""
    if not _DIGEST.fullmatch(digest):
        raise ModelError("The model's digest is none: it has not 64 hexadecimal digits.")
    return shelf / digest


def hashes_file(shelf: Path, digest: str) -> Path:
    """Where a head remembers the SHA-256 of what it has handed out. Raises ModelError, OSError."""
    make_private(shelf)
    return copy_folder(shelf, digest).with_suffix(_HASHES_SUFFIX)


@contextmanager
def alone(shelf: Path, digest: str) -> Generator[bool]:
    """Holds one model's folder alone, for writing or removing it; False where another process has it."""
    with copy_folder(shelf, digest).with_suffix(_LOCK_SUFFIX).open("ab") as file:
        yield try_lock(file)


def kept(shelf: Path) -> list[Kept]:
    """What lies on the shelf, the largest first."""
    if not shelf.is_dir():
        return []
    folders = [path for path in shelf.iterdir() if _DIGEST.fullmatch(path.name) and path.is_dir()]
    found = [Kept(path.name, _name(path), _disk_bytes(path), _is_busy(shelf, path.name)) for path in folders]
    return sorted(found, key=lambda model: (-model.size_bytes, model.digest))


def remove(shelf: Path, digest: str) -> bool:
    """Removes one model's weights, and the hashes of it. False where it is in use."""
    folder = copy_folder(shelf, digest)
    with alone(shelf, digest) as free:
        if free and folder.exists():
            aside = folder.with_name(f"{_ASIDE_PREFIX}{digest}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
    if free:
        folder.with_suffix(_HASHES_SUFFIX).unlink(missing_ok=True)
        folder.with_suffix(_LOCK_SUFFIX).unlink(missing_ok=True)
    return free


def _is_busy(shelf: Path, digest: str) -> bool:
    with alone(shelf, digest) as free:
        return not free


def _name(folder: Path) -> str:
    try:
        with (folder / ABOUT_NAME).open("rb") as file:
            about = json.loads(file.read(_ABOUT_MAX_BYTES))
        return str(about["name"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _disk_bytes(folder: Path) -> int:
    """The files are full of holes: what counts is what the system has really set aside."""
    facts = [path.lstat() for path in folder.iterdir()]
    return sum(min(fact.st_size, getattr(fact, "st_blocks", fact.st_size) * 512) for fact in facts)
