"""Builds the one-file program: `python -m build_scripts.binary` makes dist/vramancer-linux (-macos, .exe).

From whatever torch is installed in this Python: its CPU, CUDA or ROCm build becomes the program's. Where the packed
runtime is too large for one file, or --beside is given, it is put beside the launcher.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from build_scripts import freezing, signing

WORK = freezing.ROOT / "build"
DIST = freezing.ROOT / "dist"


def main(arguments: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    started_s = time.monotonic()
    if not given.launcher_only:
        _freeze("payload", WORK, "--level", str(given.level))
    size_bytes = freezing.read_facts(WORK).packed_bytes
    beside = given.beside or given.payload_only or given.launcher_only or size_bytes > freezing.EMBED_LIMIT_BYTES
    if not given.payload_only:
        _freeze("launcher", DIST, *(["--beside"] if beside else []))
        _tell(_finish(DIST / _file_name()))
    if beside and not given.launcher_only:
        _tell(_copy_payload())
    print(f"built in {time.monotonic() - started_s:.0f} s")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m build_scripts.binary", description=__doc__)
    parser.add_argument("--beside", action="store_true", help="put the packed runtime beside the launcher, not into it")
    parser.add_argument("--payload-only", action="store_true", help="pack the runtime, build no launcher")
    parser.add_argument("--launcher-only", action="store_true", help="build a launcher for the runtime packed last")
    parser.add_argument("--level", type=int, default=freezing.payload.LEVEL, help="zstd level (default %(default)s)")
    return parser


def _freeze(part: str, target: Path, *more: str) -> None:
    print(f"{part}: PyInstaller runs, some minutes; its words are in build/{part}.log", flush=True)
    WORK.mkdir(exist_ok=True)
    command = [
        sys.executable, "-m", "PyInstaller", "--noconfirm", "--workpath", str(WORK / part), "--distpath", str(target),
        str(freezing.ROOT / "vramancer.spec"), "--", "--only", part, *more,
    ]  # fmt: skip
    with (WORK / f"{part}.log").open("wb") as log:
        code = subprocess.call(command, cwd=freezing.ROOT, stdout=log, stderr=log)
    if code:
        sys.exit(f"PyInstaller failed with exit code {code}: see build/{part}.log")


def _file_name() -> str:
    return freezing.launcher_name(sys.platform) + (".exe" if sys.platform == "win32" else "")


def _finish(program: Path) -> Path:
    """Signed and notarised where the environment names an identity; macOS signs while it is built."""
    if sys.platform == "win32":
        signing.sign_windows(program, os.environ)
    if sys.platform == "darwin":
        signing.notarise(program, os.environ)
    return program


def _copy_payload() -> Path:
    target = DIST / freezing.read_facts(WORK).file_name
    DIST.mkdir(exist_ok=True)
    shutil.copyfile(WORK / freezing.PAYLOAD_FILE, target)
    return target


def _tell(path: Path) -> None:
    print(f"{path.relative_to(freezing.ROOT)}: {path.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    sys.exit(main())
