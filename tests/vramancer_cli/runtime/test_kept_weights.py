from __future__ import annotations

import json
from pathlib import Path

import pytest

from vramancer_cli.errors import ModelError
from vramancer_cli.runtime import kept_weights

DIGEST, OTHER = "ab" * 32, "cd" * 32


def put(shelf: Path, digest: str, name: str, size: int) -> Path:
    folder = kept_weights.copy_folder(shelf, digest)
    folder.mkdir(parents=True)
    (folder / "about.json").write_text(json.dumps({"name": name}))
    (folder / "00001.safetensors").write_bytes(bytes(size))
    return folder


def test_what_lies_there_the_largest_first(tmp_path: Path) -> None:
    assert kept_weights.kept(tmp_path / "nothing") == []
    put(tmp_path, DIGEST, "org/small", 10_000)
    put(tmp_path, OTHER, "org/large", 900_000)
    (tmp_path / "stranger").mkdir()
    found = kept_weights.kept(tmp_path)
    assert [model.name for model in found] == ["org/large", "org/small"]
    assert found[0].size_bytes >= 900_000


def test_holes_are_not_counted(tmp_path: Path) -> None:
    folder = put(tmp_path, DIGEST, "m", 1)
    with (folder / "00002.safetensors").open("wb") as file:
        file.truncate(1 << 40)
    [model] = kept_weights.kept(tmp_path)
    assert model.size_bytes < 1 << 20


def test_one_in_use_is_kept_and_else_all_of_it_goes(tmp_path: Path) -> None:
    put(tmp_path, DIGEST, "m", 10)
    kept_weights.hashes_file(tmp_path, DIGEST).write_bytes(b"x")
    with kept_weights.alone(tmp_path, DIGEST) as free:
        assert free
        assert kept_weights.kept(tmp_path)[0].in_use
        assert not kept_weights.remove(tmp_path, DIGEST)
    assert kept_weights.remove(tmp_path, DIGEST)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["..", "", "AB" * 32])
def test_only_a_digest_becomes_a_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelError):
        kept_weights.remove(tmp_path, name)
