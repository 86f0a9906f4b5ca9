"""llama.cpp as a peer: its source out of the package `llama-cpp-python` on PyPI, built here with its RPC server.

Needs cmake and a C++ compiler (Debian: cmake, g++, make). Once, some ten minutes on two cores.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Final

PACKAGE: Final = "llama-cpp-python"
VERSION: Final = "0.3.36"
TARGETS: Final = ("llama-bench", "llama-batched-bench", "ggml-rpc-server")
_OPTIONS: Final = (
    "CMAKE_BUILD_TYPE=Release", "GGML_NATIVE=ON", "GGML_RPC=ON", "LLAMA_OPENSSL=OFF",
    "LLAMA_BUILD_TESTS=OFF", "LLAMA_BUILD_EXAMPLES=OFF", "LLAMA_BUILD_SERVER=OFF",
    "LLAMA_BUILD_UI=OFF", "LLAMA_BUILD_MTMD=OFF",
)  # fmt: skip


class BuildError(Exception):
    """llama.cpp cannot be built here."""


def programs(work: Path) -> Path:
    """The folder of llama.cpp's programs, built unless they are there. Raises BuildError."""
    built = work / "llama.cpp-build"
    if not all((built / "bin" / name).is_file() for name in TARGETS):
        for command, package in (("cmake", "cmake"), ("c++", "g++"), ("make", "make")):
            if shutil.which(command) is None:
                raise BuildError(f"{command} is needed to build llama.cpp: apt-get install {package}")
        configure(source(work), built)
        _run("cmake", "--build", built, "--parallel", os.cpu_count() or 1, "--target", *TARGETS)
    return built / "bin"


def source(work: Path) -> Path:
    """llama.cpp's own tree, fetched unless it is there. Raises BuildError."""
    tree = work / f"{PACKAGE.replace('-', '_')}-{VERSION}" / "vendor" / "llama.cpp"
    if not tree.is_dir():
        wanted = f"{PACKAGE}=={VERSION}"
        _run(sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", work, wanted)
        with tarfile.open(work / f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz") as archive:
            archive.extractall(work, filter="data")
    return tree


def configure(tree: Path, built: Path) -> None:
    _run("cmake", "-S", tree, "-B", built, *(f"-D{option}" for option in _OPTIONS))


def _run(*command: object) -> None:
    words = [str(word) for word in command]
    if subprocess.run(words, check=False).returncode != 0:
        raise BuildError(f"This failed: {' '.join(words)}")
