"""A node's copy of a model's weights: files full of holes, and records of the pieces that are there.

It looks like a checkpoint folder, so the engine opens it, checks it and reads its own tensors from it as from any
other. Its file names are made here, never taken from another machine. A piece counts only once it is on the disk and
recorded after that; before it is used, its bytes are hashed again. Blocking; for one thread at a time. Never torch.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Final

from transport.messages import ModelFiles, ModelRef
from vramancer_cli.errors import VramancerError
from vramancer_cli.runtime import kept_weights, whole_file
from vramancer_cli.runtime.piece_records import PieceKey, PieceRecords

CONFIG: Final = 0
"""The number of config.json; the weight files count from 1."""
SPARE_BYTES: Final = 64 << 20
"""What is left free on the disk."""
RECORDS_NAME: Final = "pieces"
_KEEP_BYTES: Final = 32 << 20
_KEEP_S: Final = 0.5
"""What has come is made to last after so many bytes, or so long: that much may be fetched twice after a crash."""


class DiskFullError(VramancerError):
    """The disk has no room for the weights."""

    hint = "Free some space ('vramancer cache clean --weights'), or name a larger disk's folder in VRM_CACHE_DIR."


class WeightCopy:
    """The copy of the model `ref` on `shelf`. Raises OSError, DiskFullError."""

    def __init__(self, shelf: Path, ref: ModelRef) -> None:
        self.folder = kept_weights.copy_folder(shelf, ref.digest)
        whole_file.make_private(self.folder)
        self._paths: list[Path] = []
        self._records = PieceRecords(self.folder / RECORDS_NAME, bytes.fromhex(ref.digest))
        self._fresh: dict[PieceKey, bytes] = {}
        self._fresh_bytes = 0
        self._kept_at_s = time.monotonic()
        about = self.folder / kept_weights.ABOUT_NAME
        if not about.exists():
            whole_file.write(about, json.dumps({"name": ref.name[:200]}).encode())

    def lay_out(self, files: ModelFiles) -> None:
        """Make files of the right lengths, all hole where nothing is yet."""
        self._paths = [self.folder / "config.json"]
        self._paths += [self.folder / f"{number:05}.safetensors" for number in range(1, len(files.files) + 1)]
        sizes = [files.config_bytes, *(file.size_bytes for file in files.files)]
        for path, size_bytes in zip(self._paths, sizes, strict=True):
            _make_hollow(path, size_bytes)
        for stranger in set(self.folder.glob("*.safetensors")) - set(self._paths):
            stranger.unlink()

    def number_of(self, path: Path) -> int:
        """Of one of the files here. Raises ValueError."""
        return self._paths.index(path)

    def sha256_of(self, key: PieceKey) -> bytes:
        """Of a piece that is here, as it is on the disk now; b"" where it is not, or is not what it was."""
        recorded = self._records.get(key)
        if recorded is None:
            return b""
        if hashlib.sha256(self._read(key)).digest() == recorded:
            return recorded
        self._records.forget(key)
        return b""

    def has(self, key: PieceKey) -> bool:
        """Whether the records say so."""
        return self._records.get(key) is not None

    def put(self, key: PieceKey, data: memoryview, sha256: bytes) -> None:
        """Write a piece whose hash was checked. It counts after the next `keep`, which comes by itself."""
        try:
            with self._paths[key.file].open("r+b", buffering=0) as file:
                file.seek(key.start)
                view = data
                while view:
                    view = view[file.write(view) :]
        except OSError as error:
            raise _explained(error, self.folder) from error
        self._fresh[key] = sha256
        self._fresh_bytes += len(data)
        if self._fresh_bytes >= _KEEP_BYTES or time.monotonic() - self._kept_at_s >= _KEEP_S:
            self.keep()

    def keep(self) -> None:
        """First the bytes, then the records: so none is ever of bytes that are not there."""
        fresh, self._fresh, self._fresh_bytes = self._fresh, {}, 0
        try:
            for number in {key.file for key in fresh}:
                _sync(self._paths[number])
            for key, sha256 in fresh.items():
                self._records.add(key, sha256)
            self._records.keep()
        except OSError as error:
            raise _explained(error, self.folder) from error
        self._kept_at_s = time.monotonic()

    def check_room(self, missing_bytes: int) -> None:
        """Raises DiskFullError where so much will not fit."""
        free_bytes = shutil.disk_usage(self.folder).free
        if missing_bytes and free_bytes < missing_bytes + SPARE_BYTES:
            raise DiskFullError(
                f"{_mib(missing_bytes)} of weights are missing here, and the disk of {self.folder} has "
                f"{_mib(free_bytes)} free."
            )

    def _read(self, key: PieceKey) -> bytes:
        with self._paths[key.file].open("rb") as file:
            file.seek(key.start)
            return file.read(key.size_bytes)


def _make_hollow(path: Path, size_bytes: int) -> None:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(handle, "r+b") as file:
        if os.fstat(file.fileno()).st_size == size_bytes:
            return
        _allow_holes(file.fileno())
        try:
            file.truncate(size_bytes)
        except OSError as error:
            raise _explained(error, path.parent) from error


def _allow_holes(handle: int) -> None:
    """On Windows a file has holes only once it was said to: FSCTL_SET_SPARSE. Without it, it merely takes more room."""
    if sys.platform == "win32":
        import ctypes
        import msvcrt

        done = ctypes.c_ulong()
        file = ctypes.c_void_p(msvcrt.get_osfhandle(handle))
        ctypes.windll.kernel32.DeviceIoControl(file, 0x900C4, None, 0, None, 0, ctypes.byref(done), None)


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _explained(error: OSError, folder: Path) -> DiskFullError | OSError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFullError(f"The disk of {folder} is full.")
    return error


def _mib(size_bytes: int) -> str:
    return f"{-(-size_bytes // (1 << 20))} MiB"
