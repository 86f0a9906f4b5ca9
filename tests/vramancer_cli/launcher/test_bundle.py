from __future__ import annotations

import sys
from pathlib import Path

import pytest

import vramancer_cli
from vramancer_cli.launcher import bundle as bundle_room
from vramancer_cli.launcher.bundle import BUNDLE_FILE, Bundle, Payload, bundle, installed_build, this_build

PAYLOAD = Payload("ab" * 32, 10, 20, "cd" * 32, "x/y", True)


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    bundle_room.bundle.cache_clear()


def test_an_ordinary_python_is_no_bundle() -> None:
    assert bundle() is None
    assert this_build().commit == "source"


def test_a_frozen_program_knows_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = Bundle("launcher", installed_build("1a2b3c4d"), PAYLOAD)
    (tmp_path / BUNDLE_FILE).write_text(written.to_json())
    monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path), raising=False)
    assert bundle() == written
    assert this_build() == written.build
    bundle_room.bundle.cache_clear()


def test_the_sentence_names_version_build_torch_python_and_platform() -> None:
    import importlib.metadata
    import platform

    build = installed_build("1a2b3c4d")
    assert build.sentence() == (
        f"vramancer {vramancer_cli.__version__}, build 1a2b3c4d, torch {importlib.metadata.version('torch')}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )


def test_names_come_from_the_hash() -> None:
    assert PAYLOAD.name == "runtime-abababababababab"
    assert PAYLOAD.file_name == "vramancer-runtime-abababababababab.tar.zst"
