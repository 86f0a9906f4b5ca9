from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vramancer_cli.runtime import whole_file
from vramancer_cli.runtime.whole_file import FILE_LIMIT_BYTES, StateFolderError


def test_what_is_written_is_read_in_a_folder_that_only_the_owner_may_enter(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state" / "a.json"
    whole_file.write(path, b"one")
    whole_file.write(path, b"two")
    assert whole_file.read(path) == b"two"
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]
    if os.name == "posix":
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_there_is_none_and_makes_nothing(tmp_path: Path) -> None:
    assert whole_file.read(tmp_path / "none" / "a.json") is None
    assert list(tmp_path.iterdir()) == []


def test_no_more_is_read_than_a_file_may_hold(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b" " * FILE_LIMIT_BYTES)
    assert whole_file.read(path) == b" " * FILE_LIMIT_BYTES
    path.write_bytes(b" " * (FILE_LIMIT_BYTES + 1))
    with pytest.raises(StateFolderError, match=r"a\.json is broken \(it is too long\)"):
        whole_file.read(path)


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    whole_file.write(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateFolderError, match="cannot be written: No space left"):
        whole_file.write(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_file_is_a_named_error(tmp_path: Path) -> None:
    with pytest.raises(StateFolderError, match="cannot be read"):
        whole_file.read(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StateFolderError, match="cannot be written"):
        whole_file.write(tmp_path / "file" / "a.json", b"")
