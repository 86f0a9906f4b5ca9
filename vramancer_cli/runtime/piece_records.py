"""SHA-256 by piece of a file, in memory and in a journal that a crash cannot make lie.

Records are only ever appended; each carries its own checksum, and reading stops at the first that is not whole.
On a worker they say which pieces it has; on the head, what it need not hash again. Standard library only.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Final, NamedTuple

MAGIC: Final = b"VRMPIECE1\n"
IDENTITY_BYTES: Final = 32
MAX_RECORDS: Final = 2_000_000
"""As many as 4 TiB take in whole pieces. More are not written down."""

_FIELDS: Final = struct.Struct("<IQI32s")
_CHECKSUM: Final = struct.Struct("<I")
RECORD_BYTES: Final = _FIELDS.size + _CHECKSUM.size


class PieceKey(NamedTuple):
    """`size_bytes` from `start` on, of the file with this number."""

    file: int
    start: int
    size_bytes: int


class PieceRecords:
    """The records of one model's files. `identity` (32 bytes) says of which: a journal of others is begun anew.

    For one thread at a time. Raises OSError where the journal cannot be read or written.
    """

    def __init__(self, path: Path, identity: bytes) -> None:
        self._path = path
        self._beginning = MAGIC + identity
        self._known: dict[PieceKey, bytes] = {}
        self._new: list[bytes] = []
        self._read()

    def get(self, key: PieceKey) -> bytes | None:
        return self._known.get(key)

    def add(self, key: PieceKey, sha256: bytes) -> None:
        """In memory; `keep` makes it last."""
        if len(self._known) < MAX_RECORDS and self._known.get(key) != sha256:
            self._known[key] = sha256
            self._new.append(_pack(key, sha256))

    def forget(self, key: PieceKey) -> None:
        """The piece is not what it was. A journal that still says so is found out the next time, as now."""
        self._known.pop(key, None)

    def keep(self) -> None:
        """Write what is new, and sync it."""
        new, self._new = self._new, []
        if not new:
            return
        with self._path.open("ab") as file:
            file.write(b"".join(new))
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> None:
        try:
            data = self._path.read_bytes() if self._path.stat().st_size <= _most_bytes() else b""
        except FileNotFoundError:
            data = b""
        if not data.startswith(self._beginning):
            self._begin()
            return
        end = len(self._beginning)
        while (record := _unpack(data[end : end + RECORD_BYTES])) is not None:
            self._known[record[0]] = record[1]
            end += RECORD_BYTES
        if end < len(data):
            os.truncate(self._path, end)

    def _begin(self) -> None:
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(self._beginning)


def _most_bytes() -> int:
    return len(MAGIC) + IDENTITY_BYTES + 2 * MAX_RECORDS * RECORD_BYTES


def _pack(key: PieceKey, sha256: bytes) -> bytes:
    fields = _FIELDS.pack(*key, sha256)
    return fields + _CHECKSUM.pack(zlib.crc32(fields))


def _unpack(record: bytes) -> tuple[PieceKey, bytes] | None:
    """None for what is not one whole record."""
    if len(record) < RECORD_BYTES:
        return None
    fields, checksum = record[: _FIELDS.size], record[_FIELDS.size :]
    if _CHECKSUM.pack(zlib.crc32(fields)) != checksum:
        return None
    file, start, size_bytes, sha256 = _FIELDS.unpack(fields)
    return PieceKey(file, start, size_bytes), sha256
