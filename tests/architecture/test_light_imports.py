"""Verbs that only look, ask or help start fast: what they import is counted in a real process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.verbs import environment, terminal

HEAVY = ("torch", "transformers", "safetensors", "tokenizers", "huggingface_hub", "aiohttp", "numpy")
PROBE = """
import atexit, json, sys
atexit.register(lambda: open(sys.argv.pop(1), "w").write(json.dumps(sorted(sys.modules))))
out = sys.argv[1]
from vramancer_cli.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


def imported(tmp_path: Path, *arguments: str, code: int) -> set[str]:
    """The modules loaded when this verb ended, which it must have done with `code`."""
    report = tmp_path / "modules.json"
    command = [sys.executable, "-c", PROBE, str(report), *arguments]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=30, env=environment(tmp_path), stdin=subprocess.DEVNULL
    )
    assert ran.returncode == code, ran.stderr
    return set(json.loads(report.read_text()))


def test_the_probe_sees_what_is_loaded(tmp_path: Path) -> None:
    assert {"typer", "rich", "commands.app"} <= imported(tmp_path, "--version", code=0)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["start", "--help"], 0),
        (["status", "--url", "http://127.0.0.1:1"], 3),
        (["nodes", "--url", "http://127.0.0.1:1"], 3),
        (["invite", "--url", "http://127.0.0.1:1"], 3),
        (["chat", "--url", "http://127.0.0.1:1", "hello"], 3),
        (["stop"], 3),
        (["start"], 2),
        (["join"], 2),
        (["join", "127.0.0.1:1", "--code", "4-otter-maple-drum"], 3),
    ],
)
def test_small_verbs_load_nothing_heavy(arguments: list[str], code: int, tmp_path: Path) -> None:
    assert imported(tmp_path, *arguments, code=code).isdisjoint(HEAVY)


@pytest.mark.parametrize("verb", ["status", "chat"])
def test_looking_needs_only_the_standard_library_typer_and_rich(verb: str, tmp_path: Path) -> None:
    question = ["hello"] if verb == "chat" else []
    modules = imported(tmp_path, verb, "--url", "http://127.0.0.1:1", *question, code=3)
    assert modules.isdisjoint({"msgspec", "cryptography", "zeroconf", "psutil", "structlog"})


def test_join_up_to_the_code_prompt_loads_nothing_heavy(tmp_path: Path) -> None:
    """With a person at a terminal, who sees the prompt and leaves."""
    with terminal(tmp_path, "join", "127.0.0.1:1", PYTHONPROFILEIMPORTTIME="1") as joining:
        seen = joining.see("Pairing code that its master shows:")
        joining.interrupt()
        assert joining.end() == 130
    modules = {line.rpartition("|")[2].strip() for line in seen.splitlines() if line.startswith("import time:")}
    assert "commands.join" in modules, "the probe sees what is loaded"
    assert modules.isdisjoint(HEAVY)
