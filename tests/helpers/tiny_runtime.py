"""A runtime small enough for tests, packed by the code that packs the real one: a shell script, a library, a link."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from build_scripts.payload import pack
from vramancer_cli.launcher.bundle import Payload
from vramancer_cli.launcher.payload import MAGIC

PROGRAM = '#!/bin/sh\necho "runtime $*"\nexit 7\n'
BOOTLOADER = b"\x7fELF" + b"\x00not an archive" * 5000


@dataclass(frozen=True)
class TinyRuntime:
    """`packed` alone, and `launcher`: the same behind a bootloader and before an archive."""

    packed: Path
    launcher: Path
    payload: Payload

    def beside(self) -> Payload:
        return replace(self.payload, embedded=False)


def tiny_runtime(folder: Path, program: str = PROGRAM) -> TinyRuntime:
    source = folder / "source"
    (source / "tiny" / "lib").mkdir(parents=True)
    (source / "tiny" / "program").write_text(program)
    (source / "tiny" / "program").chmod(0o755)
    (source / "tiny" / "lib" / "library.so").write_bytes(bytes(range(256)) * 2000)
    (source / "tiny" / "lib" / "empty").touch()
    (source / "tiny" / "library.so").symlink_to("lib/library.so")
    packed = folder / "packed.tar.zst"
    payload = pack(source, "tiny", "tiny/program", packed, level=3)
    launcher = folder / "launcher"
    launcher.write_bytes(BOOTLOADER + MAGIC + packed.read_bytes() + b"MEI the archive comes last")
    return TinyRuntime(packed, launcher, payload)
