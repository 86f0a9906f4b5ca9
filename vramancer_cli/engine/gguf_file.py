"""A GGUF file's head: metadata and tensor table, read with every length checked against the file before it is believed.

Standard library only, but for the sizes of ggml's types. Must never read a weight, and never import torch.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (little-endian, versions 2 and 3).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import gguf

from vramancer_cli.errors import ModelError
from vramancer_cli.models.folder import one_line
from vramancer_cli.models.weight_files import GGUF_MAGIC as MAGIC

HEAD_MAX_BYTES: Final = 100_000_000
"""Vocabularies lie in the head; the largest in practice are some 15 MB."""
MAX_VALUES: Final = 4_000_000
"""Of all metadata, in arrays too: a large vocabulary has its tokens, scores, kinds and merges."""
MAX_KEYS: Final = 10_000
MAX_TENSORS: Final = 500_000
SPLIT_COUNT: Final = "split.count"
"""Metadata of each of several files that make up a model; with 1 or without it there is but one."""
_VERSIONS: Final = (2, 3)
_STRING: Final = 8
_ARRAY: Final = 9
_NUMBERS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_NESTING: Final = 4
_MAX_KEY_BYTES: Final = 65_535
_MAX_NAME_BYTES: Final = 64
_MAX_DIMENSIONS: Final = 4
_MAX_ELEMENTS: Final = 2**60
_MAX_ALIGNMENT: Final = 1 << 20
_DEFAULT_ALIGNMENT: Final = 32
_LEAST_ENTRY_BYTES: Final = 8 + 4 + 4 + 8
"""Of a tensor of no name and no dimensions."""
_READ_AHEAD_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class GgufArray:
    """Stands in the metadata for an array, which is checked and not kept."""

    length: int


@dataclass(frozen=True, slots=True)
class GgufEntry:
    """One tensor of the table: `start` within the file; shape as torch counts it, the rows' length last."""

    name: str
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHead:
    """`head` is the file's beginning up to where the weights begin, padding included."""

    path: Path
    head: bytes
    metadata: dict[str, Any]
    entries: tuple[GgufEntry, ...]


def read_head(path: Path) -> GgufHead:
    """The checked head. Raises ModelError."""
    with path.open("rb") as file:
        cursor = _Cursor(path, file)
        try:
            return _read(cursor)
        except UnicodeDecodeError as error:
            raise cursor.lying("a name or a text that is not UTF-8") from error


class _Cursor:
    """A place in the head. Bytes come from the file as they are asked for, and never more than it has."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file_bytes = path.stat().st_size
        self.at = 0
        self.values_left = MAX_VALUES
        self._file = file
        self._data = bytearray()

    def take(self, count: int) -> int:
        """Step over `count` bytes that are there; gives where they begin."""
        start, end = self.at, self.at + count
        if end > min(self.file_bytes, HEAD_MAX_BYTES):
            raise self.lying("more than the file holds" if end > self.file_bytes else "a head of more than 100 MB")
        while len(self._data) < end:
            more = self._file.read(max(end - len(self._data), min(_READ_AHEAD_BYTES, self.file_bytes - end)))
            if not more:
                raise ModelError(f"{self.path.name} became shorter while it was read.")
            self._data += more
        self.at = end
        return start

    def unpack(self, form: str) -> tuple[Any, ...]:
        layout = struct.Struct(f"<{form}")
        start = self.take(layout.size)
        return layout.unpack_from(self._data, start)

    def number(self, form: str) -> Any:
        return self.unpack(form)[0]

    def text(self, most_bytes: int = HEAD_MAX_BYTES) -> str:
        length = self.number("Q")
        if length > most_bytes:
            raise self.lying(f"a name or a text of {_short(length)} bytes")
        start = self.take(length)
        return self._data[start : start + length].decode()

    def skip_text(self) -> None:
        self.take(self.number("Q"))

    def count_values(self, count: int) -> None:
        self.values_left -= count
        if self.values_left < 0:
            raise self.lying(f"more than {MAX_VALUES} values")

    def bytes_left(self) -> int:
        return min(self.file_bytes, HEAD_MAX_BYTES) - self.at

    def head(self) -> bytes:
        return bytes(self._data[: self.at])

    def lying(self, what: str) -> ModelError:
        return ModelError(
            f"{one_line(self.path.name)} is cut off, damaged or no GGUF file: its head says {what}.",
            hint="Download the model again.",
        )


def _read(cursor: _Cursor) -> GgufHead:
    if cursor.file_bytes < len(MAGIC) or cursor.unpack("4s")[0] != MAGIC:
        raise ModelError(f"{one_line(cursor.path.name)} is not a GGUF file.")
    version, tensor_count, key_count = cursor.unpack("IQQ")
    if version not in _VERSIONS:
        raise ModelError(
            f"{one_line(cursor.path.name)} is GGUF of version {version}; VRAMancer reads versions 2 and 3.",
            hint="Convert it with a recent llama.cpp, for little-endian machines.",
        )
    _check_counts(cursor, tensor_count, key_count)
    metadata = dict(_metadata(cursor, key_count))
    if not tensor_count and metadata.get(SPLIT_COUNT, 1) in (0, 1):  # the first of several files may hold none
        raise ModelError(f"{one_line(cursor.path.name)} holds no weights.")
    rows = [_table_row(cursor) for _ in range(tensor_count)]
    alignment = _alignment(cursor, metadata)
    cursor.take(min(-cursor.at % alignment, cursor.file_bytes - cursor.at))
    entries = tuple(_entry(cursor, *row, alignment) for row in rows)
    if len({entry.name for entry in entries}) != len(entries):
        raise cursor.lying("two tensors of one name")
    _refuse_gaps(cursor, entries, alignment)
    return GgufHead(cursor.path, cursor.head(), metadata, entries)


def _check_counts(cursor: _Cursor, tensor_count: int, key_count: int) -> None:
    most_tensors = min(MAX_TENSORS, cursor.bytes_left() // _LEAST_ENTRY_BYTES)
    if tensor_count > most_tensors or key_count > MAX_KEYS:
        raise cursor.lying(f"{_short(tensor_count)} tensors and {_short(key_count)} keys")


def _metadata(cursor: _Cursor, count: int) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    for _ in range(count):
        key = cursor.text(_MAX_KEY_BYTES)
        if key in seen:
            raise cursor.lying(f"the key '{one_line(key)}' twice")
        seen.add(key)
        kind = cursor.number("I")
        yield key, _array(cursor, 1) if kind == _ARRAY else _value(cursor, kind)


def _value(cursor: _Cursor, kind: int) -> Any:
    cursor.count_values(1)
    if kind == _STRING:
        return cursor.text()
    if kind not in _NUMBERS:
        raise cursor.lying(f"a value of the unknown type {kind}")
    return cursor.number(_NUMBERS[kind])


def _array(cursor: _Cursor, depth: int) -> GgufArray:
    """Step over it, value by value where those have lengths of their own."""
    kind, count = cursor.unpack("IQ")
    if depth > _MAX_NESTING:
        raise cursor.lying("arrays nested too deep")
    cursor.count_values(count)
    if kind in _NUMBERS:
        cursor.take(count * struct.calcsize(_NUMBERS[kind]))
    elif kind == _STRING:
        for _ in range(count):
            cursor.skip_text()
    elif kind == _ARRAY:
        for _ in range(count):
            _array(cursor, depth + 1)
    else:
        raise cursor.lying(f"an array of the unknown type {kind}")
    return GgufArray(count)


def _table_row(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.text(_MAX_NAME_BYTES)
    dimensions = cursor.number("I")
    if dimensions > _MAX_DIMENSIONS:
        raise cursor.lying(f"a tensor of {dimensions} dimensions")
    sizes = cursor.unpack(f"{dimensions}Q")
    kind, offset = cursor.unpack("IQ")
    return name, sizes[::-1], kind, offset


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.lying("an impossible alignment")
    return alignment


def _entry(
    cursor: _Cursor, name: str, shape: tuple[int, ...], kind_number: int, offset: int, alignment: int
) -> GgufEntry:
    """Checked against the file; `cursor` stands where the weights begin."""
    try:
        kind = gguf.GGMLQuantizationType(kind_number)
    except ValueError as error:
        raise _unreadable(cursor, name, f"the unknown type {kind_number}") from error
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    elements = math.prod(shape)
    if elements > _MAX_ELEMENTS or 0 in shape or (shape[-1] if shape else 1) % block_elements:
        raise cursor.lying(f"a shape that '{one_line(name)}' cannot have")
    size_bytes = elements // block_elements * block_bytes
    if offset % alignment or offset + size_bytes > cursor.file_bytes - cursor.at:
        raise cursor.lying(f"a place outside the file for '{one_line(name)}'")
    return GgufEntry(name, kind, shape, cursor.at + offset, size_bytes)


def _refuse_gaps(cursor: _Cursor, entries: tuple[GgufEntry, ...], alignment: int) -> None:
    """Tensors follow each other, each at the next multiple of the alignment: nothing hides between or behind them."""
    end = cursor.at
    for entry in sorted(entries, key=lambda entry: entry.start):
        if entry.start - cursor.at != _aligned(end - cursor.at, alignment):
            raise cursor.lying(f"a place for '{one_line(entry.name)}' that overlaps another's or leaves a gap")
        end = entry.start + entry.size_bytes
    if cursor.file_bytes > cursor.at + _aligned(end - cursor.at, alignment):
        raise cursor.lying("less than the file holds")


def _aligned(offset: int, alignment: int) -> int:
    return offset + -offset % alignment


def _unreadable(cursor: _Cursor, name: str, what: str) -> ModelError:
    return ModelError(f"'{one_line(name)}' in {one_line(cursor.path.name)} is stored as {what}.")


def _short(value: Any) -> str:
    return str(value) if isinstance(value, int) and value.bit_length() <= 32 else "a huge number of"
