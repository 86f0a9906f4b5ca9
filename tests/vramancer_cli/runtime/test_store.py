"""Where checkpoints are found; what comes from the hub is in `test_hub`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import hostile_checkpoints as hostile
from transport.messages import ModelRef
from vramancer_cli.errors import ModelError
from vramancer_cli.models.catalog import BUILTIN_NAME, builtin_folder
from vramancer_cli.runtime import store


async def test_without_a_model_the_built_in_one() -> None:
    assert await store.locate_choice(None) == ("builtin", BUILTIN_NAME, builtin_folder())


async def test_a_folder_is_resolved(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    source, location, folder = await store.locate_choice(str(tmp_path))
    assert (source, location, folder) == ("folder", str(tmp_path.resolve()), tmp_path.resolve())
    assert await store.locate_ref(ModelRef("m", "folder", location, "")) == folder


async def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json"):
        await store.locate_choice(str(tmp_path))


async def test_a_head_needs_a_tokenizer_that_it_can_read_and_a_worker_does_not(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        await store.locate_choice(str(tmp_path))
    assert await store.locate_ref(ModelRef("m", "folder", str(tmp_path), "")) == tmp_path.resolve()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
async def test_a_folder_that_brings_code_is_refused_on_every_node(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    hostile.brings_code(name)(tmp_path)
    with pytest.raises(ModelError, match="auto_map"):
        await store.locate_ref(ModelRef("m", "folder", str(tmp_path), ""))
