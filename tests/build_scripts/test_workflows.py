"""The workflows name what exists: modules, targets, files, variables and versions. None of them can run here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from build_scripts import freezing, signing
from commands.app import app

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MODULE_CALL = re.compile(r"python3? -m (\S+)((?: +--?[a-z-]+)*)")
OURS = {
    signing.CODESIGN_IDENTITY,
    signing.NOTARY_PROFILE,
    signing.SIGN_CERTIFICATE,
    signing.SIGN_TIMESTAMP_URL,
}


def load(path: Path) -> dict[str, Any]:
    """YAML takes the key `on` for a truth value; it is put right."""
    content = yaml.safe_load(path.read_text("utf-8"))
    content["on"] = content.pop(True)
    return content


def jobs(path: Path) -> list[dict[str, Any]]:
    return list(load(path)["jobs"].values())


STEPS = [(path.name, step) for path in WORKFLOWS for job in jobs(path) for step in job["steps"]]
RUNS = [(name, step["run"]) for name, step in STEPS if "run" in step]
BINARIES = ROOT / ".github" / "workflows" / "binaries.yml"


def test_there_is_one_for_checks_and_one_for_binaries() -> None:
    assert [path.name for path in WORKFLOWS] == ["binaries.yml", "check.yml"]
    assert len(RUNS) > 5


def test_every_command_that_a_recipe_names_is_there() -> None:
    modules, scripts = set[str](), set[str]()
    for name, text in RUNS:
        for module, options in MODULE_CALL.findall(text):
            if module != "pip":
                modules.add(module)
                check_options(module, options.split())
        scripts |= set(re.findall(r"(?:^|\s)(\.ci/\S+)", text))
        for target in re.findall(r"(?:^|\s)make ([a-z-]+)", text):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.M), f"{name}: make {target}"
    assert modules >= {"build_scripts.binary", "build_scripts.smoke", "build_scripts.wheel"}
    assert scripts == {".ci/run"}
    assert all(os.access(ROOT / script, os.X_OK) for script in scripts)


def test_every_verb_that_a_recipe_runs_is_there() -> None:
    verbs = {verb for _, text in RUNS for verb in re.findall(r'"\$one" ([a-z]+)', text)}
    assert verbs >= {"start", "chat", "stop"}
    assert verbs <= set(typer.main.get_group(app).commands)


def check_options(module: str, options: list[str]) -> None:
    """Asks the module itself."""
    ran = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, f"{module}: {ran.stderr}"
    for option in options:
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", ran.stdout), f"{module} has no {option}"


def test_the_files_are_those_that_the_build_makes() -> None:
    made = {freezing.launcher_name(p) + (".exe" if p == "win32" else "") for p in ("linux", "darwin", "win32")}
    matrix = load(BINARIES)["jobs"]["build"]["strategy"]["matrix"]["include"]
    assert {entry["file"] for entry in matrix} == made
    assert {entry["runner"].partition("-")[0] for entry in matrix} == {"ubuntu", "macos", "windows"}


def test_torch_comes_alone_and_in_the_version_of_the_project() -> None:
    pinned = next(
        name
        for name in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
        if name.startswith("torch==")
    )
    for job in jobs(BINARIES):
        installs = [step["run"] for step in job["steps"] if "pip install" in step.get("run", "")]
        assert re.match(rf"python -m pip install {re.escape(pinned)}(\s|$)", installs[0]), installs
        assert "--constraint constraints.txt" in installs[1]


@pytest.mark.parametrize(("name", "step"), [(n, s) for n, s in STEPS if "uses" in s])
def test_actions_are_githubs_own_in_one_major_version(name: str, step: dict[str, Any]) -> None:
    assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]), name


def test_secrets_reach_one_step_each_and_never_a_command_line() -> None:
    for path in WORKFLOWS:
        text = path.read_text("utf-8")
        in_steps = [value for _, step in STEPS for value in step.get("env", {}).values() if "secrets." in str(value)]
        if path == BINARIES:
            assert text.count("secrets.") == len(in_steps) > 0, "only in the env of a step"
        else:
            assert "secrets." not in text
        assert set(load(path)["on"]).isdisjoint({"pull_request_target", "workflow_run"})
        assert load(path)["permissions"] == {"contents": "read"}
    assert not [text for _, text in RUNS if "secrets." in text]
    assert "pull_request" not in load(BINARIES)["on"], "a stranger's code does not run beside an identity"


def test_the_signing_variables_are_those_that_signing_reads() -> None:
    named = set(re.findall(r"VRM_[A-Z_]+", BINARIES.read_text("utf-8")))
    assert named == OURS


def test_nothing_runs_for_ever() -> None:
    assert all(0 < job["timeout-minutes"] <= 120 for path in WORKFLOWS for job in jobs(path))
