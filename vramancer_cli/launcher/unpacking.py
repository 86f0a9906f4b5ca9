"""From packed bytes to a runtime in its folder: aside, verified, synced, then renamed; or not at all.

What is written before the hash is known lies in a folder that nothing runs from. Never a terminal: progress is yielded.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Generator, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

import zstandard

from vramancer_cli.errors import VramancerError
from vramancer_cli.launcher.bundle import Payload
from vramancer_cli.launcher.payload import (
    ASIDE_PREFIX,
    MANIFEST_LIMIT_BYTES,
    MANIFEST_NAME,
    BrokenPayloadError,
    Manifest,
    Packed,
)

_SYNC_THREADS: Final = 8
"""Each sync waits for the disk; side by side they share the journal's commits."""
_SPARE_BYTES: Final = 64 * 1024 * 1024


class NoRoomError(VramancerError):
    """There is no room for the runtime in the cache folder."""

    hint = "Make room, or name another folder in VRM_CACHE_DIR."


class CacheWriteError(VramancerError):
    """The runtime cannot be written into the cache folder."""

    hint = "Name another folder in VRM_CACHE_DIR."


class _Measured:
    """The packed bytes as a stream: no more than the payload has, hashed as they pass."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._left_bytes = size_bytes
        self._hash = hashlib.sha256()
        self.read_bytes = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left_bytes if size < 0 else min(size, self._left_bytes))
        self._hash.update(data)
        self._left_bytes -= len(data)
        self.read_bytes += len(data)
        return data

    def digest(self) -> str:
        """Of all of it: what the decompressor did not need is read too."""
        while self.read(1024 * 1024):
            pass
        return self._hash.hexdigest()


def unpack(packed: Packed, payload: Payload, target: Path) -> Generator[int, None, None]:
    """Makes the folder `target`, which must not exist, and yields now and then how many packed bytes are done.

    Raises NoRoomError, CacheWriteError or BrokenPayloadError, and then leaves nothing behind.
    """
    _check_room(target.parent, payload.unpacked_bytes)
    with _aside(target) as folder:
        yield from _extract(packed, payload, folder)
        _sync(folder)
        folder.rename(target)
        _sync_entry(target.parent)


def _check_room(folder: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes + _SPARE_BYTES:
        raise NoRoomError(
            f"The runtime needs {needed_bytes / 1e6:.0f} MB in {folder}, and {free_bytes / 1e6:.0f} MB are free."
        )


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that is gone afterwards, unless it was renamed."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{ASIDE_PREFIX}{target.name}-", dir=target.parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise NoRoomError(f"There is no room left in {target.parent}.") from error
        raise CacheWriteError(f"{target.parent} cannot be written: {error.strerror or error}.") from error


def _extract(packed: Packed, payload: Payload, folder: Path) -> Generator[int, None, None]:
    with packed.path.open("rb") as file:
        file.seek(packed.offset)
        source = _Measured(file, payload.packed_bytes)
        try:
            yield from _extract_members(source, payload, folder)
            whole = source.digest() == payload.digest
        except (zstandard.ZstdError, tarfile.TarError, EOFError) as error:
            raise BrokenPayloadError from error
    if not whole:
        raise BrokenPayloadError


def _extract_members(source: _Measured, payload: Payload, folder: Path) -> Generator[int, None, None]:
    stream = zstandard.ZstdDecompressor().stream_reader(cast("BinaryIO", source))  # it only reads
    with tarfile.open(fileobj=stream, mode="r|") as archive:
        manifest = _first_member(archive, payload, folder)
        left = {*manifest.files, *manifest.links}
        while (member := archive.next()) is not None:
            _check_member(member, manifest, left)
            left.remove(member.name)
            archive.extract(member, folder, filter="data")
            yield source.read_bytes
    if left:
        raise BrokenPayloadError


def _first_member(archive: tarfile.TarFile, payload: Payload, folder: Path) -> Manifest:
    member = archive.next()
    if member is None or member.name != MANIFEST_NAME or not 0 < member.size <= MANIFEST_LIMIT_BYTES:
        raise BrokenPayloadError
    file = archive.extractfile(member)
    data = file.read() if file else b""
    if hashlib.sha256(data).hexdigest() != payload.manifest_digest:
        raise BrokenPayloadError
    (folder / MANIFEST_NAME).write_bytes(data)
    return Manifest.decode(data)


def _check_member(member: tarfile.TarInfo, manifest: Manifest, left: Set[str]) -> None:
    """Each path once, as what the manifest says it is."""
    as_file = member.isreg() and manifest.files.get(member.name) == member.size
    as_link = member.issym() and manifest.links.get(member.name) == member.linkname
    if member.name not in left or not (as_file or as_link):
        raise BrokenPayloadError


def _sync(folder: Path) -> None:
    """Every byte to the disk before the name says that they are there."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    with ThreadPoolExecutor(_SYNC_THREADS) as threads:
        for _ in threads.map(_sync_file, paths):
            pass


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_entry(folder: Path) -> None:
    if os.name == "posix":
        _sync_file(folder)
