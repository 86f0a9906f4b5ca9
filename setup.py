"""Builds the native kernels (vramancer_cli/engine/native) where there is a compiler for them. All else: pyproject.toml.

A build without them is whole: the engine then multiplies with torch's kernels. So nothing here may fail an install.
"""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = Path("vramancer_cli/engine/native")
NAME = "vramancer_cli.engine.native.kernels"
CHECKS = {"abi_check.cpp"}
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    "-ffp-contract=off",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
]
"""No contraction: where a sum and a product become one rounding is written out, so that it is the same everywhere.
Uninitialised is what gcc 12 finds in its own header of intrinsics. `omp simd` loops may be reordered as they are
marked, no others."""


class Kernels(build_ext):
    """A plain shared library that torch loads: it knows neither Python's headers nor torch's, and is no Python module,
    nor named like one."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.torch.so"

    def build_extension(self, ext: Extension) -> None:
        if sys.platform == "linux":
            ext.library_dirs.append(str(self._stand_in()))
        super().build_extension(ext)

    def _stand_in(self) -> Path:
        """A folder with an empty libtorch_cpu.so to link against: when the kernels are loaded, torch's is there."""
        folder = Path(self.build_temp) / "stand_in"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "empty.cpp").write_text("", "utf-8")
        objects = self.compiler.compile([str(folder / "empty.cpp")], extra_postargs=["-fPIC"])
        self.compiler.link_shared_object(
            objects, str(folder / "libtorch_cpu.so"), extra_preargs=["-Wl,-soname,libtorch_cpu.so"]
        )
        return folder


class Wheel(bdist_wheel):
    """For any Python of this platform, or for any platform where no kernels were built."""

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        built = Path(self.get_finalized_command("build_ext").get_ext_fullpath(NAME))
        return "py3", "none", platform if built.exists() else "any"


def kernels() -> list[Extension]:
    links = {
        "linux": ["-Wl,--no-as-needed", "-ltorch_cpu", "-Wl,--unresolved-symbols=ignore-all"],
        "darwin": ["-undefined", "dynamic_lookup"],
    }
    if sys.platform not in links:
        return []
    sources = sorted(str(path) for path in FOLDER.glob("*.cpp") if path.name not in CHECKS)
    headers = sorted(str(path) for path in FOLDER.glob("*.h"))
    extension = Extension(
        NAME, sources, depends=headers, extra_compile_args=FLAGS, extra_link_args=links[sys.platform], optional=True,
        language="c++",
    )  # fmt: skip
    return [extension]


setup(ext_modules=kernels(), cmdclass={"build_ext": Kernels, "bdist_wheel": Wheel})
