"""Packs a folder with a frozen runtime into the payload that a launcher carries (its layout: vramancer_cli/launcher).

The same folder gives the same bytes: members in the order of their names, without times or owners.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from vramancer_cli.launcher.bundle import Payload
from vramancer_cli.launcher.payload import MAGIC, MANIFEST_NAME, Manifest

LEVEL = 12
"""Of zstd's 19 ordinary ones. Higher ones pack for minutes to save a tenth; unpacking costs the same."""
THREADS = 2


class _Hashed:
    """A file that is hashed and counted while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size_bytes += len(data)
        return self._file.write(data)

    def digest(self) -> str:
        return self._hash.hexdigest()


def pack(folder: Path, top: str, program: str, target: Path, level: int = LEVEL) -> Payload:
    """Packs all that is under `folder`/`top` into `target`; `program` is the executable's path from `folder` on.

    Raises FileNotFoundError where that executable is missing.
    """
    manifest = manifest_of(folder, top)
    if program not in manifest.files:
        raise FileNotFoundError(f"{folder / program} is missing: there is nothing to pack")
    encoded = manifest.encode()
    with target.open("wb") as file:
        hashed = _Hashed(file)
        compressor = zstandard.ZstdCompressor(level=level, threads=THREADS)
        with compressor.stream_writer(hashed, closefd=False) as stream:  # pyright: ignore[reportArgumentType]
            _write_tar(folder, manifest, encoded, stream)
    return Payload(
        digest=hashed.digest(),
        packed_bytes=hashed.size_bytes,
        unpacked_bytes=sum(manifest.files.values()),
        manifest_digest=hashlib.sha256(encoded).hexdigest(),
        program=program,
        embedded=True,
    )


def manifest_of(folder: Path, top: str) -> Manifest:
    paths = sorted(path for path in (folder / top).rglob("*") if path.is_symlink() or path.is_file())
    names = {path: path.relative_to(folder).as_posix() for path in paths}
    return Manifest(
        files={names[path]: path.stat().st_size for path in paths if not path.is_symlink()},
        links={names[path]: str(path.readlink()) for path in paths if path.is_symlink()},
    )


def _write_tar(folder: Path, manifest: Manifest, encoded: bytes, stream: BinaryIO) -> None:
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        head = tarfile.TarInfo(MANIFEST_NAME)
        head.size = len(encoded)
        archive.addfile(head, io.BytesIO(encoded))
        for member, path in _members(folder, manifest):
            if path is None:
                archive.addfile(member)
            else:
                with path.open("rb") as file:
                    archive.addfile(member, file)


def _members(folder: Path, manifest: Manifest) -> Iterator[tuple[tarfile.TarInfo, Path | None]]:
    """Files of one kind side by side, so that the compressor finds what they share; links last."""
    for name in sorted(manifest.files, key=lambda name: (Path(name).suffix, name)):
        path = folder / name
        member = tarfile.TarInfo(name)
        member.size = manifest.files[name]
        member.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
        yield member, path
    for name, link_target in manifest.links.items():
        member = tarfile.TarInfo(name)
        member.type = tarfile.SYMTYPE
        member.linkname = link_target
        yield member, None


def put_before(archive: Path, payload: Path) -> None:
    """Rewrites PyInstaller's archive file as: MAGIC, the payload, the archive. What reads it counts from its end."""
    joined = archive.with_suffix(".joined")
    with joined.open("wb") as out:
        out.write(MAGIC)
        for part in (payload, archive):
            with part.open("rb") as file:
                while data := file.read(1024 * 1024):
                    out.write(data)
    joined.replace(archive)
