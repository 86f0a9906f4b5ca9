"""Which model a person means."""

from __future__ import annotations

from pathlib import Path

import pytest

from vramancer_cli.errors import ModelError
from vramancer_cli.models import catalog


@pytest.mark.parametrize("model", [None, catalog.BUILTIN_NAME])
def test_without_a_choice_or_by_name_it_is_the_builtin_model(model: str | None) -> None:
    assert catalog.classify(model) == ("builtin", catalog.BUILTIN_NAME)


def test_the_builtin_folder_lies_beside_the_module() -> None:
    assert catalog.builtin_folder() == Path(catalog.__file__).parent / "guide"


@pytest.mark.parametrize(
    "model", ["./llama", "../a/b", "/models/llama", "~/llama", "C:\\models\\x", "a/b/c", "x/", "org//", "."]
)
def test_what_looks_like_a_path_is_a_folder_even_if_it_is_not_there(model: str) -> None:
    assert catalog.classify(model) == ("folder", model)


def test_an_existing_folder_wins_over_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "plain").mkdir()
    monkeypatch.chdir(tmp_path)
    assert catalog.classify("org/name") == ("folder", "org/name")
    assert catalog.classify("plain") == ("folder", "plain")
    assert catalog.classify("org/other") == ("hub", "org/other")


@pytest.mark.parametrize("model", ["org/name", "meta-llama/Llama-3.3-70B-Instruct", "0x/a_b.c"])
def test_org_and_name_is_the_hub(model: str) -> None:
    assert catalog.classify(model) == ("hub", model)


def test_a_gguf_file_is_told_by_its_name_unless_it_is_a_folder(tmp_path: Path) -> None:
    assert catalog.names_gguf("org/model.Q8_0.GGUF") and catalog.names_gguf("model.gguf")
    assert not catalog.names_gguf(None) and not catalog.names_gguf("org/model-gguf")
    (tmp_path / "folder.gguf").mkdir()
    assert not catalog.names_gguf(str(tmp_path / "folder.gguf"))


@pytest.mark.parametrize("model", ["", "llama", "org/na me", "org/näme", "-org/name"])
def test_anything_else_is_refused_with_a_hint(model: str) -> None:
    with pytest.raises(ModelError) as caught:
        catalog.classify(model)
    assert "org/name" in caught.value.hint
