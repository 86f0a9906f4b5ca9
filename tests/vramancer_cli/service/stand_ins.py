"""Stand-ins for a system's own tools, where the tool cannot run: a script on PATH that records how it was called."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

RECORD = "import json, sys; open(sys.argv[1], 'a').write(json.dumps(sys.argv[2:]) + '\\n')"


@dataclass(frozen=True)
class Tool:
    record: Path

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.record.read_text().splitlines()]


def stand_in(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """`script` is for sh, and runs in `folder` with the arguments of the call."""
    folder.mkdir(exist_ok=True)
    tool, record = folder / name, folder / f"{name}.calls"
    recording = f'"{sys.executable}" -I -S -c "{RECORD}" "{record}" "$@"'
    tool.write_text(f'#!/bin/sh\n{recording}\ncd "{folder}"\n{script}\n')
    tool.chmod(0o755)
    if str(folder) not in os.environ["PATH"].split(os.pathsep):
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return Tool(record)
