from __future__ import annotations

from pathlib import Path

import pytest

from build_scripts.payload import manifest_of, pack, put_before
from tests.helpers.tiny_runtime import tiny_runtime
from vramancer_cli.launcher.payload import MAGIC, Packed
from vramancer_cli.launcher.unpacking import unpack


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = tiny_runtime(tmp_path / "one"), tiny_runtime(tmp_path / "two")
    assert one.payload == two.payload
    assert one.packed.read_bytes() == two.packed.read_bytes()


def test_another_byte_gives_another_hash(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = tiny_runtime(tmp_path / "one"), tiny_runtime(tmp_path / "two", "#!/bin/sh\necho other\n")
    assert one.payload.digest != two.payload.digest
    assert one.payload.manifest_digest != two.payload.manifest_digest


def test_the_facts_are_those_of_the_file(tmp_path: Path) -> None:
    tiny = tiny_runtime(tmp_path)
    assert tiny.payload.packed_bytes == tiny.packed.stat().st_size
    manifest = manifest_of(tmp_path / "source", "tiny")
    assert tiny.payload.unpacked_bytes == sum(manifest.files.values())
    assert manifest.links == {"tiny/library.so": "lib/library.so"}


def test_what_was_packed_is_what_is_unpacked(tmp_path: Path) -> None:
    tiny = tiny_runtime(tmp_path)
    list(unpack(Packed(tiny.packed, 0), tiny.payload, tmp_path / "again"))
    assert manifest_of(tmp_path / "again", "tiny") == manifest_of(tmp_path / "source", "tiny")


def test_nothing_to_pack_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="nothing to pack"):
        pack(tmp_path, "empty", "empty/program", tmp_path / "packed")


def test_the_archive_stays_last(tmp_path: Path) -> None:
    (tmp_path / "a.pkg").write_bytes(b"archive")
    (tmp_path / "payload").write_bytes(b"payload")
    put_before(tmp_path / "a.pkg", tmp_path / "payload")
    assert (tmp_path / "a.pkg").read_bytes() == MAGIC + b"payload" + b"archive"
