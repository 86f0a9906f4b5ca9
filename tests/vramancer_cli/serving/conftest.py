from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.scripted_server import byte_level_folder, leading_space_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a byte-level tokenizer and a chat template."""
    return byte_level_folder(tmp_path_factory.mktemp("byte-level"))


@pytest.fixture(scope="session")
def spaced_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder whose tokenizer writes leading spaces and falls back to bytes."""
    return leading_space_folder(tmp_path_factory.mktemp("leading-space"))
