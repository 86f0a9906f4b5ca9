"""The wheel and the source archive are built for real, and what is installed is what runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from build_scripts import wheel
from build_scripts.wheel import LEFT_OUT, PACKAGES, ROOT, Installed, Release, WheelError
from vramancer_cli import __version__

KERNELS = "vramancer_cli/engine/native/kernels.torch.so"
ONE_CLUSTER = "tests/system/test_cluster.py::test_three_nodes_answer_and_each_counts_its_share"


def files_of(root: Path, *folders: str) -> set[str]:
    """Every released file in these folders, as a path from `root`."""
    found = (path.relative_to(root) for folder in folders for path in (root / folder).rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout where earlier builds left their traces, and which nobody edits meanwhile."""
    folder = tmp_path_factory.mktemp("checkout") / "source"
    wheel.copy_source(ROOT, folder)
    for trace in ("build/lib/transport/ghost.py", "commands/__pycache__/ghost.py", "vramancer.egg-info/SOURCES.txt"):
        (folder / trace).parent.mkdir(parents=True, exist_ok=True)
        (folder / trace).write_text("commands/ghost.py\n")
    return folder


@pytest.fixture(scope="module")
def release(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    return wheel.build(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def installed(release: Release, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return wheel.install(release.wheel, source, tmp_path_factory.mktemp("installed"))


def test_the_wheel_holds_the_program_and_nothing_else(source: Path, release: Release) -> None:
    with zipfile.ZipFile(release.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = next(name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        assert "vramancer = vramancer_cli.__main__:main" in archive.read(entry_points).decode()
    assert names - {KERNELS} == files_of(source, *PACKAGES)
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_") if KERNELS in names else "any"
    assert release.wheel.name == f"vramancer-{__version__}-py3-none-{platform}.whl", (
        "pyproject.toml says another version"
    )
    assert (KERNELS in names) == (shutil.which("c++") is not None), "kernels are built where there is a compiler"
    assert {"vramancer_cli/serving/page/index.html", "vramancer_cli/models/guide/model.safetensors"} <= names


def test_the_archive_holds_what_builds_tests_and_explains_it(source: Path, release: Release) -> None:
    with tarfile.open(release.archive) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert files_of(source, *wheel.RELEASED_FOLDERS) <= names
    assert set(wheel.RELEASED_FILES) <= names
    assert not [name for name in names if "ghost" in name or "__pycache__" in name]
    assert not [name for name in names if name.startswith(("build/", "dist/", "."))]


def test_every_file_that_the_archive_promises_exists() -> None:
    assert [name for name in (*wheel.RELEASED_FILES, *wheel.RELEASED_FOLDERS) if not (ROOT / name).exists()] == []


def test_what_is_left_out_exists() -> None:
    for name in LEFT_OUT:
        path, _, test = name.partition("::")
        assert (ROOT / path).exists(), name
        assert not test or f"def {test}(" in (ROOT / path).read_text("utf-8"), name


def test_the_installed_command_is_the_wheels(installed: Installed) -> None:
    command = installed.programs / "vramancer"
    ran = subprocess.run([command, "--version"], cwd=installed.folder, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("vramancer ")
    assert not (installed.folder / "vramancer_cli").exists()


def test_the_editable_install_is_not_taken_for_the_wheel(installed: Installed) -> None:
    """This interpreter imports the program from the checkout: the check sees that."""
    with pytest.raises(WheelError, match="would not run against the wheel"):
        wheel.check_origin(replace(installed, environment=Path(sys.prefix)))


def test_the_tests_pass_against_the_wheel(installed: Installed, capfd: pytest.CaptureFixture[str]) -> None:
    code = wheel.run_tests(installed, ["tests/transport/test_words.py", ONE_CLUSTER])
    told = capfd.readouterr()
    assert code == 0, told.out + told.err


def test_a_test_that_fails_is_seen(installed: Installed, capfd: pytest.CaptureFixture[str]) -> None:
    broken = installed.folder / "tests" / "transport" / "test_broken.py"
    broken.write_text("def test_broken() -> None:\n    assert False, 'seen'\n")
    try:
        assert wheel.run_tests(installed, ["tests/transport/test_broken.py"]) == 1
        assert "seen" in capfd.readouterr().out
    finally:
        broken.unlink()


def test_a_wheel_that_cannot_be_built_says_why(source: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    wheel.copy_source(source, broken)
    (broken / "pyproject.toml").write_text("[project]\nname = 3\n")
    with pytest.raises(WheelError, match=r"invalid pyproject\.toml"):
        wheel.build(broken, tmp_path / "dist")
