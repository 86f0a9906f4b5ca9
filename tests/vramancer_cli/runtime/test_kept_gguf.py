from __future__ import annotations

import json
from pathlib import Path

import pytest

from vramancer_cli.runtime import kept_gguf


def made(shelf: Path, number: int, pointer: bytes) -> Path:
    folder = shelf / f"{number:032x}" / "model"
    folder.mkdir(parents=True)
    (folder / "gguf.json").write_bytes(pointer)
    return folder


def test_an_empty_shelf_is_not_made(tmp_path: Path) -> None:
    assert kept_gguf.kept(kept_gguf.shelf_in(tmp_path)) == []
    assert not kept_gguf.shelf_in(tmp_path).exists()


def test_it_says_of_which_file_each_is_and_whether_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    for number, file in enumerate(("a.gguf", "b.gguf")):
        made(tmp_path / "gguf", number, json.dumps({"files": [{"path": str(tmp_path / file)}]}).encode())
    (tmp_path / "gguf" / "something else").mkdir()
    first, second = kept_gguf.kept(tmp_path / "gguf")
    assert (Path(first.file).name, first.is_orphan, first.in_use) == ("a.gguf", False, False)
    assert (Path(second.file).name, second.is_orphan) == ("b.gguf", True)
    assert first.size_bytes == (tmp_path / "gguf" / first.id / "model" / "gguf.json").stat().st_size


@pytest.mark.parametrize(
    "pointer",
    [
        b"",
        b"[]",
        b'{"files": ',
        b"\xff",
        b'{"files": [3]}',
        b'{"files": []}',
        b'{"files": ["' + b"x" * (1 << 20) + b'"]}',
    ],
)
def test_a_damaged_pointer_is_an_orphan_of_no_file(tmp_path: Path, pointer: bytes) -> None:
    made(tmp_path, 1, pointer)
    [found] = kept_gguf.kept(tmp_path)
    assert (found.file, found.is_orphan) == ("", True)


def test_what_a_node_uses_is_kept_until_it_ends(tmp_path: Path) -> None:
    folder = made(tmp_path, 1, b"{}")
    with kept_gguf.used(folder), kept_gguf.used(folder):  # two nodes may run out of it
        assert kept_gguf.kept(tmp_path)[0].in_use
        assert not kept_gguf.remove(tmp_path, folder.parent.name)
        assert folder.exists()
    assert kept_gguf.remove(tmp_path, folder.parent.name)
    assert list(tmp_path.iterdir()) == []
