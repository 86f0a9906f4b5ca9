"""What kind of program runs here, and what it was built from: facts that the build wrote into the frozen program.

An ordinary Python (a wheel, a checkout) has no such file and is told about itself by its packages.
"""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from vramancer_cli import __version__

BUNDLE_FILE: Final = "bundle.json"
NAME_DIGITS: Final = 16

Kind = Literal["launcher", "runtime"]


@dataclass(frozen=True, slots=True)
class Build:
    """What a program was built from. `torch` with its build tag ("2.13.0+cpu"); `commit` "source" outside a build."""

    version: str
    commit: str
    torch: str
    python: str
    platform: str

    def sentence(self) -> str:
        return (
            f"vramancer {self.version}, build {self.commit}, torch {self.torch}, Python {self.python}, {self.platform}"
        )


@dataclass(frozen=True, slots=True)
class Payload:
    """The packed runtime that a launcher belongs to.

    `digest` is the SHA-256 of the packed bytes, `manifest_digest` of the manifest in it, both in hex. `program` is
    the executable's path in the unpacked folder, with slashes. `embedded`: it rides in the launcher's own file.
    """

    digest: str
    packed_bytes: int
    unpacked_bytes: int
    manifest_digest: str
    program: str
    embedded: bool

    @property
    def name(self) -> str:
        """What its folder in the cache is called."""
        return f"runtime-{self.digest[:NAME_DIGITS]}"

    @property
    def file_name(self) -> str:
        """What the packed file is called where it does not ride in the launcher."""
        return f"vramancer-{self.name}.tar.zst"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A frozen program about itself. Only a launcher has a payload."""

    kind: Kind
    build: Build
    payload: Payload | None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Bundle:
        """Reads what `to_json` wrote, at build time, into this very program."""
        data: dict[str, Any] = json.loads(text)
        payload = data["payload"]
        return cls(data["kind"], Build(**data["build"]), Payload(**payload) if payload else None)


@cache
def bundle() -> Bundle | None:
    """None in an ordinary Python."""
    folder = getattr(sys, "_MEIPASS", None)
    if folder is None:
        return None
    return Bundle.from_json((Path(folder) / BUNDLE_FILE).read_text("utf-8"))


def this_build() -> Build:
    frozen = bundle()
    return frozen.build if frozen else installed_build("source")


def installed_build(commit: str) -> Build:
    """About the packages of this Python: nothing of torch is imported for it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "missing"
    return Build(__version__, commit, torch, platform.python_version(), f"{platform.system()} {platform.machine()}")
