"""Invariant 11: no pickle, no torch.load, no code of a model's own. And the proof that the watch over it works."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import hostile_checkpoints as hostile
from tests.helpers.unpickling import LOG_VARIABLE, WATCHED

ROOT = Path(__file__).parents[2]
ROOMS = ("vramancer_cli", "commands", "transport")
FORBIDDEN_IMPORTS = {"pickle", "_pickle", "cPickle", "shelve", "marshal", "dill", "cloudpickle", "joblib", "runpy"}
FORBIDDEN_CALLS = {"torch.load", "numpy.load", "np.load", "hub.load"}


def sources() -> list[Path]:
    return [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]


def test_no_room_imports_what_unpickles_or_calls_torch_load() -> None:
    found: list[str] = []
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
            if {name.split(".")[0] for name in names} & FORBIDDEN_IMPORTS:
                found.append(f"{path}:{node.lineno}")
            if isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN_CALLS:
                found.append(f"{path}:{node.lineno}")
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path
    assert len(sources()) > 50
    assert found == []


SESSION = """
import pickle, multiprocessing
from pathlib import Path

class Payload:
    def __reduce__(self):
        import os
        return os.system, ({command!r},)

def test_loads():
    try:
        pickle.loads({data!r})
    except Exception:
        pass

def test_torch(tmp_path):
    import torch
    path = tmp_path / "weights.bin"
    path.write_bytes({data!r})
    try:
        torch.load(path, weights_only={weights_only})
    except Exception:
        pass

def test_a_process_of_its_own():
    import subprocess, sys
    subprocess.run([sys.executable, "-c", "import pickle; pickle.loads({data!r})"], capture_output=True)

def spawned(connection):
    connection.send_bytes(b"well")

def test_a_spawned_child_is_allowed():
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    child = context.Process(target=spawned, args=(its,))
    child.start()
    assert mine.poll(60) and mine.recv_bytes() == b"well"
    child.join()

def test_plain_work_is_allowed(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"written, not read")
"""


@pytest.mark.parametrize("weights_only", [True, False])
def test_a_session_that_unpickles_fails_and_no_payload_runs(tmp_path: Path, weights_only: bool) -> None:
    """A pytest of its own under our conftest: each way of unpickling fails its test, spawning does not."""
    folder = tmp_path / "model"
    data = hostile.payload(folder)
    session = SESSION.format(command="true", data=data, weights_only=weights_only)
    (tmp_path / "test_unpickles.py").write_text(session)
    (tmp_path / "conftest.py").write_text("from tests.conftest import *  # noqa: F403\n")
    environment = {name: value for name, value in os.environ.items() if name not in (LOG_VARIABLE, "PYTHONPATH")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rA", str(tmp_path)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    outcomes = {
        line.split("::")[1].split(" ")[0]: line.split(" ")[0]
        for line in ran.stdout.splitlines()
        if line.startswith(("PASSED", "FAILED"))
    }
    assert ran.returncode == 1, ran.stdout
    assert outcomes == {
        "test_loads": "FAILED",
        "test_torch": "FAILED",
        "test_a_process_of_its_own": "FAILED",
        "test_a_spawned_child_is_allowed": "PASSED",
        "test_plain_work_is_allowed": "PASSED",
    }, ran.stdout
    assert not hostile.marker_of(folder).exists()


def test_the_payload_would_run_without_the_watch(tmp_path: Path) -> None:
    """Else nothing above is proved."""
    folder = tmp_path / "model"
    environment = {name: value for name, value in os.environ.items() if name not in (LOG_VARIABLE, "PYTHONPATH")}
    script = f"import pickle; pickle.loads({hostile.payload(folder)!r})"
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, timeout=30)
    assert hostile.marker_of(folder).exists()


def test_processes_that_tests_start_are_watched() -> None:
    script = "import sitecustomize; print(sitecustomize.__file__)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert Path(ran.stdout.strip()) == WATCHED / "sitecustomize.py"
