"""The packed runtime: how it is laid out, and where it is found.

A payload is a zstd-compressed tar (regular files and symbolic links only) whose first member is its manifest. It rides
in the launcher's file behind MAGIC, between PyInstaller's bootloader and archive; or it lies beside the launcher, or
at a URL. Wherever it comes from, its SHA-256 must be the one that the launcher was built with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, cast

from vramancer_cli.errors import VramancerError

MAGIC: Final = b"\x93VRAMANCER\r\nPAYLOAD\x00\x1a\n"
"""The archive, in which this module lies compressed, comes after the payload: the first one found is it."""
MANIFEST_NAME: Final = "manifest.json"
MANIFEST_LIMIT_BYTES: Final = 16 * 1024 * 1024
ASIDE_PREFIX: Final = ".unpacking-"
"""What folders are called in which a runtime is being made or removed."""
_SEARCHED_BYTES: Final = 8 * 1024 * 1024
"""Bootloaders are far smaller."""


class PayloadError(VramancerError):
    """The runtime that belongs to this program is broken."""

    hint = "Download the program again."


class BrokenPayloadError(PayloadError):
    """The packed runtime is not the one that this program was built with, so nothing of it was kept."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Every file of an unpacked runtime with its size in bytes, and every symbolic link with its target."""

    files: Mapping[str, int]
    links: Mapping[str, str]

    def encode(self) -> bytes:
        return json.dumps({"files": dict(self.files), "links": dict(self.links)}, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Raises BrokenPayloadError for anything that `encode` does not write, and for a path that leads outside."""
        try:
            parts = cast("dict[str, dict[str, Any]]", json.loads(data))
            files, links = parts["files"], parts["links"]
            sizes = all(isinstance(size, int) and size >= 0 for size in files.values())
            named = all(_stays_inside(path) for path in (*files, *links))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BrokenPayloadError from error
        if not sizes or not named:
            raise BrokenPayloadError
        return cls(files, {path: str(target) for path, target in links.items()})


def _stays_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and ".." not in parts and not path.startswith("/") and "\\" not in path and ":" not in parts[0]


@dataclass(frozen=True, slots=True)
class Packed:
    """A file that holds the packed runtime from `offset` on."""

    path: Path
    offset: int


def embedded(program: Path) -> Packed:
    """Where the payload begins in the launcher's own file. Raises PayloadError."""
    try:
        with program.open("rb") as file:
            return Packed(program, _offset_of_magic(file) + len(MAGIC))
    except OSError as error:
        raise PayloadError(f"{program} cannot be read: {error.strerror}.") from error


def _offset_of_magic(file: BinaryIO) -> int:
    offset = file.read(_SEARCHED_BYTES).find(MAGIC)
    if offset < 0:
        raise PayloadError
    return offset


def beside(program: Path, file_name: str) -> Packed | None:
    """The packed file in the folder of the launcher, if it is there."""
    path = program.parent / file_name
    return Packed(path, 0) if path.is_file() else None
