"""The program itself: which one runs, on what, and whether all of its parts are there.

Everything heavy is imported inside a look, so that what is missing is a finding. Never torch itself.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

import vramancer_cli
from vramancer_cli.doctor.finding import Observation, gib, surprise
from vramancer_cli.errors import VramancerError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

_PACKAGES: Final = ("transport", "vramancer_cli")
_PIN: Final = re.compile(r"([A-Za-z0-9_.-]+)==([^\s;,]+)")


class IncompleteError(VramancerError):
    """A part of the program is missing."""

    hint = "Install VRAMancer again."


def is_frozen() -> bool:
    """Whether this is a program of its own, not a Python installation."""
    return bool(getattr(sys, "frozen", False))


def program(build: str) -> Observation:
    """`build`: what `--version` says."""
    where = f"frozen, {sys.executable}" if is_frozen() else f"in {Path(vramancer_cli.__file__).parents[1]}"
    return Observation(f"{build}; {where}")


def python() -> Observation:
    words = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.maxsize < 2**32:
        return Observation(f"{words}, 32 bits", "failed", "Use a 64-bit Python.")
    return Observation(words if is_frozen() else f"{words}, {sys.executable}")


def system() -> Observation:
    import psutil

    name = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Observation(f"{name}, {os.cpu_count()} CPU cores, {gib(psutil.virtual_memory().total)} of memory")


def libraries() -> Observation:
    """torch and transformers import, and are the versions that this program was made for: others compute other bits.

    Raises IncompleteError.
    """
    from vramancer_cli.engine import trial

    pinned, imported = _pinned_versions(), trial.versions()
    for name, found in imported.items():
        installed = metadata.version(name).partition("+")[0]  # what a node tells the others
        if not found == installed == pinned[name]:
            raise IncompleteError(
                f"{name} is {found} (installed as {installed}), but this program was made for {pinned[name]}.",
                hint=f"Install {name}=={pinned[name]}.",
            )
    return Observation(", ".join(f"{name} {found}" for name, found in imported.items()))


def _pinned_versions() -> dict[str, str]:
    try:
        required = metadata.requires("vramancer") or []
    except metadata.PackageNotFoundError:
        raise IncompleteError("The program's own metadata is missing.") from None
    return {pin[1]: pin[2] for line in required if (pin := _PIN.match(line))}


def modules() -> Observation:
    """Every module of ours imports, and with them every library that they use. Raises IncompleteError."""
    names = sorted(_module_names())
    broken = [words for name in names if (words := _import_trouble(name))]
    if broken or not names:
        raise IncompleteError(f"{len(broken)} of {len(names)} modules cannot be imported. {' '.join(broken[:1])}")
    return Observation(f"all {len(names)} import")


def _module_names() -> Iterator[str]:
    for package in _PACKAGES:
        path = importlib.import_module(package).__path__
        found = pkgutil.walk_packages(path, f"{package}.", onerror=lambda _: None)
        yield from (module.name for module in found if not module.name.endswith(".__main__"))


def _import_trouble(name: str) -> str:
    """Why the module cannot be imported; empty when it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a module's own code raises while it is imported
        return f"{name}: {surprise(error)}"
    return ""


def page() -> Observation:
    """The files of the chat page, as the server reads them. Raises IncompleteError."""
    from vramancer_cli.serving import page_routes

    folder = resources.files("vramancer_cli.serving") / "page"
    sizes = {name: _size_bytes(folder / name) for name, _ in page_routes.FILES.values()}
    missing = [name for name, size_bytes in sizes.items() if not size_bytes]
    if missing:
        raise IncompleteError(f"The chat page's {', '.join(missing)} cannot be read, or is empty.")
    return Observation(f"{len(sizes)} files, {sum(sizes.values()) // 1024} KiB")


def _size_bytes(file: Traversable) -> int:
    try:
        return len(file.read_bytes())
    except OSError:
        return 0
