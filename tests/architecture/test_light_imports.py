"""Verbs that only look, ask or help start fast: what they import is counted in a real process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.helpers.verbs import environment, terminal
from vramancer_cli.runtime import run_file
from vramancer_cli.runtime.run_file import RunRecord

HEAVY = ("torch", "transformers", "safetensors", "tokenizers", "huggingface_hub", "aiohttp", "numpy")
LAUNCHER = {"vramancer_cli", "commands", "transport", "typer", "rich", "psutil"} | {
    "annotated_doc", "markdown_it", "mdurl", "pygments", "shellingham", "typing_extensions",  # both bring these
    "annotated_types", "pydantic", "pydantic_core", "typing_inspection",  # typer looks for these, and does without
}  # fmt: skip
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
        (["doctor", "--help"], 0),
        (["status", "--url", "http://127.0.0.1:1"], 3),
        (["nodes", "--url", "http://127.0.0.1:1"], 3),
        (["invite", "--url", "http://127.0.0.1:1"], 3),
        (["chat", "--url", "http://127.0.0.1:1", "hello"], 3),
        (["stop"], 3),
        (["config"], 0),
        (["keys", "list"], 0),
        (["keys", "add", "laptop"], 0),
        (["audit"], 0),
        (["service", "install", "--master", "--dry-run"], 0),
        (["start"], 2),
        (["join"], 2),
        (["join", "127.0.0.1:1", "--code", "4-otter-maple-drum"], 3),
    ],
)
def test_small_verbs_load_nothing_heavy(arguments: list[str], code: int, tmp_path: Path) -> None:
    assert imported(tmp_path, *arguments, code=code).isdisjoint(HEAVY)


@pytest.mark.parametrize("arguments", [["keys", "list"], ["keys", "add", "laptop"], ["audit"]], ids=" ".join)
def test_the_keys_and_the_audit_need_only_the_standard_library_typer_and_rich(
    arguments: list[str], tmp_path: Path
) -> None:
    modules = imported(tmp_path, *arguments, code=0)
    assert modules.isdisjoint({"msgspec", "cryptography", "zeroconf", "structlog", "psutil"})


@pytest.fixture
def node_here(tmp_path: Path) -> Iterator[Path]:
    """A state folder out of which a process runs, whose API does not answer."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        started_s = psutil.Process(process.pid).create_time()
        run_file.write(tmp_path, RunRecord(process.pid, started_s, "http://127.0.0.1:1", 1, "head"))
        yield tmp_path
        process.kill()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["status"], 3), (["nodes"], 3), (["invite"], 3), (["chat", "hello"], 3), (["audit"], 0), (["stop"], 0)],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_small_verbs_need_only_what_the_launcher_holds(arguments: list[str], code: int, node_here: Path) -> None:
    """Where a node runs: they read its run file. The one-file program runs them before it has unpacked anything."""
    modules = imported(node_here, *arguments, code=code)
    assert {"vramancer_cli.runtime.run_file", "psutil"} <= modules, "it found the node"
    roots = {name.partition(".")[0] for name in modules if not name.startswith("_")}
    assert roots - sys.stdlib_module_names <= LAUNCHER
    assert {name for name in modules if name.startswith("transport.")} == {"transport.errors"}


def test_join_up_to_the_code_prompt_loads_nothing_heavy(tmp_path: Path) -> None:
    """With a person at a terminal, who sees the prompt and leaves."""
    with terminal(tmp_path, "join", "127.0.0.1:1", PYTHONPROFILEIMPORTTIME="1") as joining:
        seen = joining.see("Pairing code that its master shows:")
        joining.interrupt()
        assert joining.end() == 130
    modules = {line.rpartition("|")[2].strip() for line in seen.splitlines() if line.startswith("import time:")}
    assert "commands.join" in modules, "the probe sees what is loaded"
    assert modules.isdisjoint(HEAVY)
