from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from build_scripts import freezing
from tests.helpers.tiny_runtime import tiny_runtime
from vramancer_cli.launcher.bundle import Bundle


def test_both_parts_are_built_unless_one_is_named() -> None:
    both = freezing.options([])
    assert (both.runtime, both.launcher, both.embed) == (True, True, True)
    assert not freezing.options(["--only", "payload"]).launcher
    assert not freezing.options(["--only", "launcher"]).runtime
    assert not freezing.options(["--beside"]).embed


def test_of_torch_only_what_runs_is_kept() -> None:
    kept = freezing.needed([
        ("torch/bin/protoc", "", "DATA"),
        ("torch/bin/torch_shm_manager", "", "BINARY"),
        ("torch\\include\\ATen.h" if sys.platform == "win32" else "torch/include/ATen.h", "", "DATA"),
        ("torch/lib/libtorch_cpu.so", "", "BINARY"),
        ("transformers/models/llama/modeling_llama.py", "", "DATA"),
    ])  # fmt: skip
    assert [name for name, _, _ in kept] == [
        "torch/bin/torch_shm_manager",
        "torch/lib/libtorch_cpu.so",
        "transformers/models/llama/modeling_llama.py",
    ]


def test_what_the_launcher_leaves_out_of_the_house_exists() -> None:
    """A room that was renamed would silently come back into the launcher, with all that it imports."""
    ours = [name for name in freezing.LEFT_TO_THE_RUNTIME if name.startswith(("vramancer_cli.", "transport."))]
    assert ours
    for name in ours:
        assert importlib.util.find_spec(name), name


def test_small_verbs_need_nothing_that_the_launcher_leaves_out(tmp_path: Path) -> None:
    """Every verb's module, imported as the launcher does, with what is left out made impossible to import."""
    program = f"""
import sys, importlib.abc, pkgutil
left_out = {freezing.LEFT_TO_THE_RUNTIME!r}
class Wall(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if any(name == left or name.startswith(left + ".") for left in left_out):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Wall())
import commands
for module in pkgutil.iter_modules(commands.__path__):
    __import__("commands." + module.name)
from vramancer_cli.__main__ import main
for verb in (["--help"], ["--version"], ["cache"], ["config"], ["status", "--url", "http://127.0.0.1:1"], ["stop"]):
    code = main(verb)
    assert code in (0, 3), (verb, code)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={"HOME": str(tmp_path), "PATH": ""},
        cwd=freezing.ROOT,
    )
    assert ran.returncode == 0, ran.stderr


def test_a_launchers_facts_need_a_packed_runtime(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        freezing.write_bundle(tmp_path, "launcher", embed=True)
    (tmp_path / "made").mkdir()
    tiny = tiny_runtime(tmp_path / "made")
    (tmp_path / freezing.PAYLOAD_FACTS).write_text(json.dumps(asdict(tiny.payload)))
    bundle = Bundle.from_json(freezing.write_bundle(tmp_path, "launcher", embed=False).read_text())
    assert bundle.kind == "launcher"
    assert bundle.payload == tiny.beside()
    assert Bundle.from_json(freezing.write_bundle(tmp_path, "runtime").read_text()).payload is None


@pytest.mark.parametrize(
    ("platform", "file", "program"),
    [
        ("linux", "vramancer-linux", "vramancer-runtime/vramancer-runtime"),
        ("darwin", "vramancer-macos", "VRAMancer.app/Contents/MacOS/vramancer-runtime"),
        ("win32", "vramancer", "vramancer-runtime/vramancer-runtime.exe"),
    ],
)
def test_each_system_has_its_names(platform: str, file: str, program: str) -> None:
    assert freezing.launcher_name(platform) == file
    assert freezing.program_path(platform) == program
