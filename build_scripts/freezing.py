"""What `vramancer.spec` puts into the runtime and into the launcher, and why. Runs inside PyInstaller."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePath

from build_scripts import payload
from vramancer_cli.launcher.bundle import BUNDLE_FILE, Build, Bundle, Kind, Payload, installed_build

ROOT = Path(__file__).parents[1]
RUNTIME_NAME = "vramancer-runtime"
MACOS_APP = "VRAMancer.app"
PAYLOAD_FILE = "payload.tar.zst"
PAYLOAD_FACTS = "payload.json"
EMBED_LIMIT_BYTES = 2 * 10**9
"""A Windows program file may not reach 4 GiB, and objcopy and signing tools give up earlier."""

MACOS_INFO = {
    "CFBundleIdentifier": "dev.vramancer.runtime",
    "LSBackgroundOnly": True,
    "NSLocalNetworkUsageDescription": "VRAMancer finds your other machines on this network and computes with them.",
    "NSBonjourServices": ["_vramancer._tcp"],
}

ASKED_FOR_VERSIONS = [
    "filelock", "gguf", "huggingface_hub", "numpy", "packaging", "pyyaml", "regex", "safetensors", "tokenizers",
    "torch", "tqdm", "transformers", "vramancer",
]  # fmt: skip
"""transformers asks for the versions of these while it is imported; node.py for torch's and its own."""

_TESTS_AND_TOOLS = [
    "IPython", "_pytest", "greenlet", "grimp", "hypothesis", "importlinter", "matplotlib", "openai", "playwright",
    "pyright", "pytest", "ruff", "setuptools", "tkinter", "zstandard._cffi", "zstandard.backend_cffi",
]  # fmt: skip
NOT_IN_THE_RUNTIME = _TESTS_AND_TOOLS

LEFT_TO_THE_RUNTIME = [
    *_TESTS_AND_TOOLS,
    # Of the house: what only a running node needs.
    "vramancer_cli.node", "vramancer_cli.doctor", "vramancer_cli.engine", "vramancer_cli.serving.app",
    "vramancer_cli.runtime.enrolment", "vramancer_cli.runtime.state_folder", "transport.endpoint",
    # Of others: what those need.
    "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "hf_xet", "numpy", "aiohttp", "msgspec",
    "cryptography", "spake2", "zeroconf", "structlog", "pynvml", "jinja2", "sympy", "yaml._yaml",
    # Of Python: what nothing here uses, but much mentions.
    "curses", "ensurepip", "idlelib", "lib2to3", "pydoc", "sqlite3", "unittest", "xmlrpc",
]  # fmt: skip

_NOT_NEEDED = (
    "torch/bin", "torch/include", "torch/share", "torch/test",
    "torch/lib/libtorchbind_test", "torch/lib/libbackend_with_compiler", "torch/lib/libjitbackend_test",
    "torch/lib/libaoti_custom_ops",
)  # fmt: skip
"""Of torch's files: compilers of protocol buffers, C++ headers, and its own tests. 130 MB."""

_NEEDED = "torch/bin/torch_shm_manager"
"""`import torch` fails without it."""

Toc = Sequence[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Options:
    """Which parts to build; `embed`: the payload rides in the launcher. `level` is zstd's."""

    runtime: bool
    launcher: bool
    embed: bool
    level: int


def options(arguments: Sequence[str]) -> Options:
    """What stands after `--` on PyInstaller's command line."""
    parser = argparse.ArgumentParser(prog="vramancer.spec")
    parser.add_argument("--only", choices=("payload", "launcher"))
    parser.add_argument("--beside", action="store_true")
    parser.add_argument("--level", type=int, default=payload.LEVEL)
    given = parser.parse_args(arguments)
    return Options(given.only != "launcher", given.only != "payload", not given.beside, given.level)


def needed(toc: Toc) -> list[tuple[str, str, str]]:
    """A collected list without what no node runs."""
    named = [(PurePath(entry[0]).as_posix(), entry) for entry in toc]
    return [entry for name, entry in named if name.startswith(_NEEDED) or not name.startswith(_NOT_NEEDED)]


def without_metadata(toc: Toc) -> list[tuple[str, str, str]]:
    """Without the packages' papers, which PyInstaller adds where a version is asked for: a launcher knows them from
    its bundle file, and each file costs time at each start."""
    return [entry for entry in toc if ".dist-info" not in entry[0]]


def launcher_name(platform: str) -> str:
    return {"darwin": "vramancer-macos", "win32": "vramancer"}.get(platform, "vramancer-linux")


def program_path(platform: str) -> str:
    """The runtime's executable in its folder."""
    return {
        "darwin": f"{MACOS_APP}/Contents/MacOS/{RUNTIME_NAME}",
        "win32": f"{RUNTIME_NAME}/{RUNTIME_NAME}.exe",
    }.get(platform, f"{RUNTIME_NAME}/{RUNTIME_NAME}")


def write_bundle(work: Path, kind: Kind, *, embed: bool = False) -> Path:
    """The frozen program's facts about itself; a launcher's need the payload to be packed."""
    of_payload = replace(read_facts(work), embedded=embed) if kind == "launcher" else None
    target = work / kind / BUNDLE_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(Bundle(kind, build(), of_payload).to_json(), "utf-8")
    return target


def build() -> Build:
    return installed_build(commit())


def commit() -> str:
    """The short commit, with a plus sign where files differ from it; "source" where there is no repository."""
    try:
        return _git("rev-parse", "--short=8", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "source"


def _git(*arguments: str) -> str:
    return subprocess.check_output(["git", "-C", str(ROOT), *arguments], text=True, stderr=subprocess.DEVNULL).strip()


def pack_runtime(collected: Path, work: Path, level: int) -> None:
    """Packs the runtime in `collected` into `work`, and notes its facts beside it."""
    top = MACOS_APP if sys.platform == "darwin" else RUNTIME_NAME
    facts = payload.pack(collected, top, program_path(sys.platform), work / PAYLOAD_FILE, level)
    (work / PAYLOAD_FACTS).write_text(json.dumps(asdict(facts), indent=2) + "\n", "utf-8")


def read_facts(work: Path) -> Payload:
    return Payload(**json.loads((work / PAYLOAD_FACTS).read_text("utf-8")))
