from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.verbs import InProcess
from vramancer_cli.launcher import cache
from vramancer_cli.runtime import kept_gguf


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    verb = InProcess(tmp_path / "state", monkeypatch, capsys)
    monkeypatch.setenv("VRM_CACHE_DIR", str(tmp_path / "cache"))
    return verb


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cache with two runtimes of older versions."""
    path = cache.open_folder(tmp_path / "cache")
    for name in ("runtime-aaaa", "runtime-bbbb"):
        (path / name).mkdir()
        (path / name / "file").write_bytes(bytes(2048))
    return path


def test_an_empty_cache_is_said_and_not_made(run: InProcess, tmp_path: Path) -> None:
    ran = run("cache")
    assert ran.code == 0
    assert ran.out.strip() == f"{tmp_path / 'cache'}: 0 runtimes, weights of 0 models, 0 folders made of GGUF files"
    assert not (tmp_path / "cache").exists()


def test_runtimes_are_listed(run: InProcess, folder: Path) -> None:
    held = cache.hold(folder, "runtime-aaaa")
    assert held is not None
    lines = run("cache").out.splitlines()
    assert any("runtime-aaaa" in line and "2.0 KiB" in line and "in use" in line for line in lines)
    assert any("runtime-bbbb" in line and "idle" in line for line in lines)
    told = json.loads(run("cache", "--json").out)
    assert told["folder"] == str(folder)
    assert told["runtimes"][0] == {"name": "runtime-aaaa", "size_bytes": 2048, "current": False, "in_use": True}
    held.close()


def test_clean_removes_what_nobody_uses(run: InProcess, folder: Path) -> None:
    held = cache.hold(folder, "runtime-aaaa")
    assert held is not None
    ran = run("cache", "clean")
    assert ran.code == 0
    assert ran.out.splitlines() == ["1 runtime removed, 2.0 KiB freed.", "runtime-aaaa is in use, and was kept."]
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"runtime-aaaa"}
    held.close()


def test_clean_speaks_json(run: InProcess, folder: Path) -> None:
    told = json.loads(run("cache", "clean", "--json").out)
    assert told == {"folder": str(folder), "removed": ["runtime-aaaa", "runtime-bbbb"], "in_use": []}


def test_weights_from_a_master_are_listed_and_removed(run: InProcess, tmp_path: Path) -> None:
    digest = "ab" * 32
    folder = tmp_path / "cache" / "weights" / digest
    folder.mkdir(parents=True)
    (folder / "about.json").write_text('{"name": "org/na\\u001bme"}')
    (folder / "00001.safetensors").write_bytes(bytes(8192))
    assert any("org/name" in line and digest[:8] in line for line in run("cache").out.splitlines())
    assert json.loads(run("cache", "--json").out)["weights"][0]["digest"] == digest
    assert run("cache", "clean").code == 0 and folder.exists()
    assert run("cache", "clean", "--weights").out.startswith("Weights of 1 model removed, ")
    assert not folder.exists()


def gguf_folder(cache: Path, number: int, file: Path) -> Path:
    """As the engine makes one of a GGUF file."""
    folder = cache / "gguf" / f"{number:032x}" / file.stem
    folder.mkdir(parents=True)
    (folder / "gguf.json").write_text(json.dumps({"files": [{"path": str(file), "head_sha256": "0" * 64}]}))
    (folder / "tokenizer.json").write_bytes(bytes(1 << 20))
    return folder


def test_what_was_made_of_gguf_files_is_listed_and_removed(run: InProcess, tmp_path: Path) -> None:
    (tmp_path / "here.gguf").write_bytes(b"GGUF")
    here = gguf_folder(tmp_path / "cache", 1, tmp_path / "here.gguf")
    lost = gguf_folder(tmp_path / "cache", 2, tmp_path / "lost.gguf")
    lines = run("cache").out.splitlines()
    assert lines[0].endswith("2 folders made of GGUF files")
    assert any("here.gguf" in line and "1.0 MiB" in line and "idle" in line for line in lines)
    assert any("lost.gguf" in line and "its file is gone" in line for line in lines)
    told = json.loads(run("cache", "--json").out)["gguf"]
    assert [(made["file"], made["is_orphan"]) for made in told] == [
        (str(tmp_path / "here.gguf"), False), (str(tmp_path / "lost.gguf"), True)
    ]  # fmt: skip
    assert run("cache", "clean").out.startswith("0 runtimes and 1 folder made of GGUF files removed, 1.0 MiB freed.")
    assert here.exists() and not lost.exists()
    with kept_gguf.used(here):
        assert any("in use" in line for line in run("cache").out.splitlines())
        assert run("cache", "clean", "--gguf").out.splitlines() == [
            "0 folders made of GGUF files removed, 0 B freed.",
            "That of here.gguf is in use, and was kept.",
        ]
    assert json.loads(run("cache", "clean", "--gguf", "--json").out)["removed"] == [here.parent.name]
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []
