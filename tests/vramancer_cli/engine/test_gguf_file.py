"""Heads of GGUF files: what the format's own writer wrote is read, and what lies is refused before it costs."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from vramancer_cli.engine.gguf_file import GgufArray, read_head
from vramancer_cli.errors import ModelError
from vramancer_cli.models.weight_files import is_gguf

HUGE = 2**63


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + values


def row(name: str | bytes, shape: tuple[int, ...], kind: int, offset: int, dimensions: int | None = None) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape) if dimensions is None else dimensions) + sizes + struct.pack(
        "<IQ", kind, offset
    )  # fmt: skip


def gguf_bytes(
    keys: list[bytes] | None = None,
    rows: list[bytes] | None = None,
    data: bytes = b"\0" * 64,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    key_count: int | None = None,
) -> bytes:
    """Two tensors of 32 bytes, unless told otherwise."""
    keys = [] if keys is None else keys
    rows = [row("a", (8,), 0, 0), row("b", (2, 4), 0, 32)] if rows is None else rows
    counts = struct.pack(
        "<IQQ",
        version,
        len(rows) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    head = magic + counts + b"".join(keys) + b"".join(rows)
    return head + b"\0" * (-len(head) % 32) + data


def test_what_the_formats_own_writer_wrote_is_read(tmp_path: Path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(7)
    writer.add_rope_freq_base(0.5)
    writer.add_token_list(["a", "bc", "ü"])
    writer.add_array("nested", [[1, 2], [3]])
    values = np.arange(96, dtype=np.float32).reshape(3, 32)
    writer.add_tensor("plain", values)
    writer.add_tensor("packed", gguf.quantize(values, gguf.GGMLQuantizationType.Q4_0),
                      raw_dtype=gguf.GGMLQuantizationType.Q4_0)  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    head = read_head(path)
    assert is_gguf(path)
    assert head.metadata["general.architecture"] == "llama"
    assert (head.metadata["llama.block_count"], head.metadata["llama.rope.freq_base"]) == (7, 0.5)
    assert head.metadata["tokenizer.ggml.tokens"] == GgufArray(3)
    plain, packed = head.entries
    assert (plain.name, plain.shape, plain.size_bytes) == ("plain", (3, 32), 384)
    assert (packed.shape, packed.size_bytes, packed.kind.name) == ((3, 32), 54, "Q4_0")
    whole = path.read_bytes()
    assert head.head == whole[: plain.start]
    assert np.array_equal(np.frombuffer(whole[plain.start :][:384], np.float32), values.reshape(-1))


def test_the_table_of_this_file_is_sound(tmp_path: Path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_bytes([key("general.alignment", 4, struct.pack("<I", 32))]))
    assert [(entry.name, entry.shape) for entry in read_head(path).entries] == [("a", (8,)), ("b", (4, 2))]


NESTED = array(9, 1) * 5000
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file"),
    "other magic": (gguf_bytes(magic=b"GGML"), "not a GGUF file"),
    "version 1": (gguf_bytes(version=1), "version 1"),
    "big-endian": (gguf_bytes(version=3 << 24), "little-endian|versions 2 and 3"),
    "only the counts": (gguf_bytes()[:24], "2 tensors"),
    "huge tensor count": (gguf_bytes(tensor_count=HUGE), "huge number of tensors"),
    "more tensors than bytes": (gguf_bytes(tensor_count=100_000), "100000 tensors"),
    "no tensors": (gguf_bytes(rows=[]), "holds no weights"),
    "huge key count": (gguf_bytes(key_count=HUGE), "huge number of keys"),
    "huge key": (gguf_bytes([struct.pack("<Q", HUGE)]), "huge number of bytes"),
    "key beyond the file": (gguf_bytes([struct.pack("<Q", 60_000)]), "more than the file holds"),
    "huge text": (gguf_bytes([text("k") + struct.pack("<IQ", 8, HUGE)]), "huge number of bytes"),
    "text beyond the file": (gguf_bytes([text("k") + struct.pack("<IQ", 8, 10_000)]), "more than the file holds"),
    "no UTF-8": (gguf_bytes([key("k", 8, text(b"\xff\xfe"))]), "not UTF-8"),
    "key twice": (gguf_bytes([key("k", 4, b"\0" * 4)] * 2), "'k' twice"),
    "unknown value type": (gguf_bytes([key("k", 13, b"\0" * 8)]), "unknown type 13"),
    "unknown array type": (gguf_bytes([key("k", 9, array(99, 1))]), "unknown type 99"),
    "huge array": (gguf_bytes([key("k", 9, array(10, HUGE))]), "more than 4000000 values"),
    "array beyond the file": (gguf_bytes([key("k", 9, array(10, 1_000_000))]), "more than the file holds"),
    "array of huge text": (gguf_bytes([key("k", 9, array(8, 1, struct.pack("<Q", HUGE)))]), "more than the file holds"),
    "texts beyond the file": (gguf_bytes([key("k", 9, array(8, 3_000_000))]), "more than the file holds"),
    "deep arrays": (gguf_bytes([key("k", 9, NESTED)]), "nested too deep"),
    "long tensor name": (gguf_bytes(rows=[row("n" * 65, (8,), 0, 0)]), "65 bytes"),
    "huge dimension count": (gguf_bytes(rows=[row("a", (8,), 0, 0, 2**32 - 1)]), "4294967295 dimensions"),
    "five dimensions": (gguf_bytes(rows=[row("a", (1,) * 5, 0, 0)]), "5 dimensions"),
    "huge dimension": (gguf_bytes(rows=[row("a", (HUGE,), 0, 0)]), "shape that 'a' cannot have"),
    "dimensions that overflow": (gguf_bytes(rows=[row("a", (2**32, 2**32, 2), 0, 0)]), "shape that 'a' cannot have"),
    "no elements": (gguf_bytes(rows=[row("a", (0, HUGE), 0, 0)]), "shape that 'a' cannot have"),
    "half a block": (gguf_bytes(rows=[row("a", (16,), 8, 0)]), "shape that 'a' cannot have"),
    "unknown tensor type": (gguf_bytes(rows=[row("a", (8,), 4, 0)]), "unknown type 4"),
    "huge offset": (gguf_bytes(rows=[row("a", (8,), 0, HUGE)]), "outside the file"),
    "offset at the end": (gguf_bytes(rows=[row("a", (8,), 0, 64)]), "outside the file"),
    "crooked offset": (gguf_bytes(rows=[row("a", (8,), 0, 4)]), "outside the file"),
    "larger than the file": (gguf_bytes(rows=[row("a", (800,), 0, 0)]), "outside the file"),
    "overlapping": (gguf_bytes(rows=[row("a", (8,), 0, 0), row("b", (8,), 0, 0)]), "overlaps"),
    "a gap": (gguf_bytes(rows=[row("b", (8,), 0, 32)]), "leaves a gap"),
    "more behind": (gguf_bytes(data=b"\0" * 96), "less than the file holds"),
    "cut off": (gguf_bytes(data=b"\0" * 63), "outside the file"),
    "one name twice": (gguf_bytes(rows=[row("a", (8,), 0, 0), row("a", (8,), 0, 32)]), "one name"),
    "alignment 0": (gguf_bytes([key("general.alignment", 4, b"\0" * 4)]), "impossible alignment"),
    "alignment 24": (gguf_bytes([key("general.alignment", 4, struct.pack("<I", 24))]), "impossible alignment"),
    "alignment 2 GiB": (gguf_bytes([key("general.alignment", 4, struct.pack("<I", 1 << 31))]), "impossible alignment"),
    "alignment in words": (gguf_bytes([key("general.alignment", 8, text("32"))]), "impossible alignment"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_head_is_refused_in_a_sentence_and_in_little_memory(tmp_path: Path, name: str):
    data, sentence = HOSTILE[name]
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=sentence):
            read_head(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path, cut: int):
    path = tmp_path / "model.gguf"
    whole = gguf_bytes([key("words", 9, array(8, 2, text("one") + text("two")))])
    path.write_bytes(whole[: min(cut, len(whole) - 1)])
    with pytest.raises(ModelError):
        read_head(path)


def test_flipped_bits_are_refused_or_harmless_and_never_anything_else(tmp_path: Path):
    path = tmp_path / "model.gguf"
    whole = gguf_bytes([key("general.alignment", 4, struct.pack("<I", 32)), key("w", 9, array(8, 1, text("one")))])
    refused = sum(_is_refused(path, _flipped(whole, bit)) for bit in range(8 * (len(whole) - 64)))
    assert refused > 4 * (len(whole) - 64)


def _flipped(data: bytes, bit: int) -> bytes:
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)


def _is_refused(path: Path, data: bytes, read: Callable[[Path], object] = read_head) -> bool:
    path.write_bytes(data)
    try:
        read(path)
    except ModelError:
        return True
    return False
