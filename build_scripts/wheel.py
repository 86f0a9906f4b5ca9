"""`make wheel` and `make test-wheel`: the wheel and the source archive, and the tests against the installed wheel.

    python -m build_scripts.wheel [--out FOLDER]
    python -m build_scripts.wheel --test [--all] [TEST ...]

The tests run outside the checkout, in a new environment that holds the wheel and not the editable install: what a
person gets, not what happens to lie beside the tests. Imports nothing of the program but its errors.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vramancer_cli.errors import VramancerError

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = ("transport", "vramancer_cli", "commands")
RELEASED_FOLDERS: Final = (*PACKAGES, "bench", "build_scripts", "docs", "fuzz", "tests")
RELEASED_FILES: Final = (
    "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md",
    "SECURITY.md", "constraints.txt", "pyproject.toml", "setup.py", "vramancer.spec",
)  # fmt: skip

DEFAULT_TESTS: Final = (
    "tests/transport",
    "tests/commands",
    "tests/vramancer_cli",
    "tests/system/test_cluster.py::test_three_nodes_answer_and_each_counts_its_share",
)
LEFT_OUT: Final = {
    "tests/architecture/test_floors.py": "reads the sources and contracts of the checkout",
    "tests/bench": "the measurements are not in the wheel",
    "tests/build_scripts": "the build scripts are not in the wheel",
    "tests/commands/test_options.py::test_nothing_else_reads_the_environment": "reads the sources of the checkout",
    "tests/parity": "reads the built-in model from the checkout",
}
"""What --test does not run, and why: paths from the repository's root, or one test."""

_MAKE_ARCHIVE: Final = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
_PYTEST_SECTION: Final = "[tool.pytest.ini_options]"
_OURS: Final = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


class WheelError(VramancerError):
    """The wheel could not be built or installed."""


@dataclass(frozen=True, slots=True)
class Release:
    """The source archive, and the wheel that was made from it."""

    archive: Path
    wheel: Path


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment that holds the wheel, and a folder outside the checkout with the tests, to run them from."""

    environment: Path
    folder: Path

    @property
    def programs(self) -> Path:
        return self.environment / ("Scripts" if os.name == "nt" else "bin")

    @property
    def python(self) -> Path:
        return self.programs / ("python.exe" if os.name == "nt" else "python")


def build(root: Path, out: Path) -> Release:
    """Both files, in `out`; the wheel is made from the archive, so that the archive is known to be whole.

    Raises WheelError.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vramancer-wheel-") as scratch:
        source, wheels = Path(scratch) / "source", Path(scratch) / "wheels"
        copy_source(root, source)
        told = _run([sys.executable, "-c", _MAKE_ARCHIVE, str(out.resolve())], source)
        archive = out.resolve() / told.splitlines()[-1]
        # torch needs setuptools, so it is here already: an isolated build would ask the registry for it again.
        pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
        _run([*pip, "--wheel-dir", str(wheels), str(archive)], Path(scratch))
        (wheel,) = wheels.glob("*.whl")
        return Release(archive, Path(shutil.move(wheel, out.resolve() / wheel.name)))


def copy_source(root: Path, folder: Path) -> None:
    """What is released, without what earlier builds left: setuptools would take a deleted module from `build/`."""
    folder.mkdir()
    for name in RELEASED_FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so", "*.egg-info", ".*")
        shutil.copytree(root / name, folder / name, ignore=ignored)
    for name in RELEASED_FILES:
        shutil.copy2(root / name, folder / name)


def install(wheel: Path, root: Path, scratch: Path) -> Installed:
    """The wheel alone in a new environment; all that it needs comes from this interpreter's. Raises WheelError."""
    installed = Installed(scratch / "environment", scratch / "away")
    _run([sys.executable, "-m", "venv", "--without-pip", str(installed.environment)], scratch)
    pip = [sys.executable, "-m", "pip", "--python", str(installed.python), "install", "--no-deps", "--quiet"]
    _run([*pip, str(wheel)], scratch)
    # Afterwards: pip would see the editable install on that path and think that there is nothing to do. A plain path
    # line runs no .pth file found there, and it is such a file that makes the editable install importable.
    lines = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    _site_packages(installed).joinpath("dependencies.pth").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    copy_tests(root, installed.folder)
    check_origin(installed)
    return installed


def copy_tests(root: Path, folder: Path) -> None:
    """The tests, the scripts that they drive, and pytest's settings; nothing of the program."""
    folder.mkdir()
    for name in ("tests", "build_scripts", "fuzz"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    settings = (root / "pyproject.toml").read_text("utf-8")
    _, section, rest = settings.partition(_PYTEST_SECTION)
    (folder / "pyproject.toml").write_text(section + rest.partition("\n[")[0], "utf-8")


def check_origin(installed: Installed) -> None:
    """Raises WheelError unless every package of the program is imported from the new environment."""
    ask = f"import {', '.join(PACKAGES)}; print({', '.join(f'{name}.__file__' for name in PACKAGES)}, sep='\\n')"
    for line in _run([str(installed.python), "-c", ask], installed.folder).splitlines():
        if not Path(line).resolve().is_relative_to(installed.environment.resolve()):
            raise WheelError(f"The tests would not run against the wheel: {line} was imported.")


def run_tests(installed: Installed, tests: Sequence[str]) -> int:
    """pytest's exit code; its output goes to this terminal."""
    without = [f"--{'deselect' if '::' in name else 'ignore'}={name}" for name in LEFT_OUT]
    command = [str(installed.python), "-m", "pytest", *without, *tests]
    return subprocess.run(command, cwd=installed.folder, env=_environment(installed), check=False).returncode


def _environment(installed: Installed) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    return {**kept, "PATH": os.pathsep.join([str(installed.programs), kept.get("PATH", "")])}


def _site_packages(installed: Installed) -> Path:
    base = str(installed.environment)
    return Path(sysconfig.get_path("purelib", "venv", {"base": base, "platbase": base}))


def _run(command: Sequence[str], folder: Path) -> str:
    """Its standard output. Raises WheelError with what it said, if it failed."""
    kept = {name: value for name, value in os.environ.items() if name not in _OURS}
    ran = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise WheelError(f"{Path(command[0]).name} failed:\n{ran.stdout}{ran.stderr}")
    return ran.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m build_scripts.wheel", description="The wheel, and its tests.")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the two files go")
    parser.add_argument("--test", action="store_true", help="run the tests against the installed wheel")
    parser.add_argument("--all", action="store_true", help="with --test: every test that does not read the checkout")
    parser.add_argument("tests", nargs="*", help="with --test: these tests instead")
    options = parser.parse_args(arguments)
    try:
        release = build(ROOT, options.out)
        print(f"{release.archive}\n{release.wheel}")
        return _test(release, ["tests"] if options.all else options.tests or DEFAULT_TESTS) if options.test else 0
    except WheelError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _test(release: Release, tests: Sequence[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="vramancer-wheel-") as scratch:
        installed = install(release.wheel, ROOT, Path(scratch))
        for name, reason in LEFT_OUT.items():
            print(f"left out: {name} ({reason})")
        return run_tests(installed, tests)


if __name__ == "__main__":
    sys.exit(main())
