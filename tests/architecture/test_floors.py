"""The floors of the house: import-linter's contracts hold, and are the ones that the house was built on."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = {
    "errors",
    "settings",
    "telemetry",
    "models",
    "planning",
    "scheduling",
    "cluster",
    "engine",
    "runtime",
    "serving",
    "launcher",
    "service",
    "doctor",
    "node",
}
CONTRACTS = {
    "Floors: lower never imports upper",
    "Every room has a floor",
    "Inside transport: protocol below sockets",
    "Pure rooms: no socket, loop, thread, clock, torch",
    "torch lives in engine only",
    "The terminal lives in commands only",
    "The HTTP server lives in serving only",
    "The engine does not decide",
    "The porch does not dig in the cellar",
    "The launcher is small",
}
FORBIDDEN_NAMES = {"manager", "handler", "helper", "helpers", "utils", "util", "common", "base", "misc"}


def test_every_contract_is_written_down_and_kept() -> None:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    assert {contract["name"] for contract in linter["contracts"]} >= CONTRACTS
    assert set(linter["root_packages"]) == {"vramancer_cli", "commands", "transport"}
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    for name in CONTRACTS:
        assert f"{name} KEPT" in ran.stdout


def test_every_room_stands_on_one_floor() -> None:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    floors = next(c for c in linter["contracts"] if c["name"] == "Every room has a floor")
    named = {room.strip() for layer in floors["layers"] for room in layer.split("|")}
    assert named >= ROOMS
    assert floors["exhaustive"] is True


def test_no_room_is_a_drawer_for_anything() -> None:
    for root in ("vramancer_cli", "commands", "transport", "build_scripts"):
        for path in (ROOT / root).rglob("*.py"):
            assert not FORBIDDEN_NAMES & set(path.stem.split("_")), path


def test_no_pickle_no_torch_load_no_remote_code() -> None:
    for root in ("vramancer_cli", "commands", "transport", "build_scripts"):
        for path in (ROOT / root).rglob("*.py"):
            text = path.read_text("utf-8")
            for word in ("import pickle", "from pickle", "torch.load(", "trust_remote_code=True"):
                assert word not in text, f"{path}: {word}"
