from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vramancer_cli.errors import ModelError
from vramancer_cli.models import weight_files
from vramancer_cli.models.weight_files import INDEX_NAME, USE_SAFETENSORS, indexed_names, is_gguf, no_weights


def index(tmp_path: Path, weight_map: Any) -> Path:
    path = tmp_path / INDEX_NAME
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


def test_an_index_names_each_file_once(tmp_path: Path) -> None:
    found = indexed_names(index(tmp_path, {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}))
    assert found == ["1.safetensors", "2.safetensors"]


@pytest.mark.parametrize("weight_map", [None, [], "all", {"a": 1}, {"a": "1.safetensors", "b": None}])
def test_an_index_that_is_none_is_refused(tmp_path: Path, weight_map: Any) -> None:
    with pytest.raises(ModelError, match="no proper weight_map"):
        indexed_names(index(tmp_path, weight_map))


def test_an_index_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "MAX_FILES", 2)
    many = {str(number): f"{number}.safetensors" for number in range(3)}
    with pytest.raises(ModelError, match="more than 2 files"):
        indexed_names(index(tmp_path, many))


def test_a_model_without_weights_says_which_it_has_instead() -> None:
    pickled = no_weights("'org/m'", ["config.json", "pytorch_model.bin", "a.pt"])
    assert "only as a.pt" in str(pickled) and pickled.hint == USE_SAFETENSORS
    assert str(no_weights("'org/m'", ["config.json"])) == "'org/m' has no .safetensors file."


def test_gguf_is_known_by_how_it_begins(tmp_path: Path) -> None:
    for name, data, expected in (("a.bin", b"GGUF\x03", True), ("b.gguf", b"GGU", False), ("c.gguf", b"", False)):
        (tmp_path / name).write_bytes(data)
        assert is_gguf(tmp_path / name) is expected
