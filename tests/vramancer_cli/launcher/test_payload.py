from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.tiny_runtime import BOOTLOADER, tiny_runtime
from vramancer_cli.launcher.payload import MAGIC, BrokenPayloadError, Manifest, PayloadError, beside, embedded


def test_the_payload_is_found_between_bootloader_and_archive(tmp_path: Path) -> None:
    tiny = tiny_runtime(tmp_path)
    packed = embedded(tiny.launcher)
    assert packed.offset == len(BOOTLOADER) + len(MAGIC)
    read = tiny.launcher.read_bytes()[packed.offset :][: tiny.payload.packed_bytes]
    assert read == tiny.packed.read_bytes()


def test_a_program_without_a_payload_says_so(tmp_path: Path) -> None:
    (tmp_path / "bare").write_bytes(BOOTLOADER)
    with pytest.raises(PayloadError, match="broken"):
        embedded(tmp_path / "bare")
    with pytest.raises(PayloadError, match="cannot be read"):
        embedded(tmp_path / "missing")


def test_a_packed_file_beside_the_program_is_found_by_its_name(tmp_path: Path) -> None:
    tiny = tiny_runtime(tmp_path)
    assert beside(tiny.launcher, tiny.payload.file_name) is None
    there = tmp_path / tiny.payload.file_name
    tiny.packed.rename(there)
    found = beside(tiny.launcher, tiny.payload.file_name)
    assert found is not None
    assert (found.path, found.offset) == (there, 0)


def test_a_manifest_survives_its_encoding() -> None:
    manifest = Manifest({"a/b": 3}, {"a/c": "b"})
    assert Manifest.decode(manifest.encode()) == manifest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"files": {}}',
        '{"files": {"a": "3"}, "links": {}}',
        '{"files": {"a": -1}, "links": {}}',
        '{"files": {"../a": 1}, "links": {}}',
        '{"files": {"/a": 1}, "links": {}}',
        '{"files": {"": 1}, "links": {}}',
        '{"files": {"C:a": 1}, "links": {}}',
        '{"files": {"a\\\\b": 1}, "links": {}}',
        '{"files": {}, "links": {"a/../../b": "c"}}',
    ],
)
def test_a_manifest_that_is_no_manifest_is_refused(text: str) -> None:
    with pytest.raises(BrokenPayloadError):
        Manifest.decode(text.encode())
