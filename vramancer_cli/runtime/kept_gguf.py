"""The model folders that were made of GGUF files: where they lie, of which file each is, and their removal.

They hold config and tokenizer, no weights, and are made again when they are missed (`engine/gguf_folder`). Standard
library only: the small verbs import this.
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

from vramancer_cli.models.weight_files import GGUF_NAME
from vramancer_cli.runtime.claim import try_lock

SHELF_NAME: Final = "gguf"
_LOCK_SUFFIX: Final = ".lock"
_ASIDE_PREFIX: Final = "removing-"
_ID: Final = re.compile(r"[0-9a-f]{32}")
_POINTER_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class KeptFolder:
    """One folder. `file`: the first GGUF file that it was made of, "" if unknown; `is_orphan`: one of them is gone."""

    id: str
    file: str
    size_bytes: int
    is_orphan: bool
    in_use: bool


def shelf_in(cache: Path) -> Path:
    return cache / SHELF_NAME


def kept(shelf: Path) -> list[KeptFolder]:
    """What lies on the shelf, by file."""
    if not shelf.is_dir():
        return []
    found = [_looked_at(path) for path in shelf.iterdir() if _ID.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda folder: (folder.file, folder.id))


def remove(shelf: Path, folder_id: str) -> bool:
    """False where a node runs out of it, or another process makes it."""
    place = shelf / folder_id
    with _locked(place, shared=False) as free:
        if free and place.exists():
            aside = shelf / f"{_ASIDE_PREFIX}{folder_id}"
            shutil.rmtree(aside, ignore_errors=True)
            place.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
    if free:
        place.with_suffix(_LOCK_SUFFIX).unlink(missing_ok=True)
    return free


@contextmanager
def used(folder: Path) -> Generator[None]:
    """While it lasts, nobody removes `folder`, the model folder itself."""
    with _locked(folder.parent, shared=True):
        yield


@contextmanager
def _locked(place: Path, *, shared: bool) -> Generator[bool]:
    with place.with_suffix(_LOCK_SUFFIX).open("ab") as file:
        yield try_lock(file, shared=shared)


def _looked_at(place: Path) -> KeptFolder:
    files = _files(place)
    size_bytes = sum(path.lstat().st_size for path in place.rglob("*") if not path.is_dir())
    with _locked(place, shared=False) as free:
        is_orphan = not files or not all(Path(file).is_file() for file in files)
        return KeptFolder(place.name, files[0] if files else "", size_bytes, is_orphan, in_use=not free)


def _files(place: Path) -> list[str]:
    for pointer in place.glob(f"*/{GGUF_NAME}"):
        try:
            with pointer.open("rb") as file:
                return [str(named["path"]) for named in json.loads(file.read(_POINTER_MAX_BYTES))["files"]]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return []
