"""One small checkpoint for the whole room, and an engine on the CPU with one thread."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.checkpoints import make_checkpoint
from vramancer_cli.engine.torch_engine import TorchEngine


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def tied_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)


@pytest.fixture
def engine() -> TorchEngine:
    return TorchEngine("cpu", limit_bytes=1 << 28, threads=1)
