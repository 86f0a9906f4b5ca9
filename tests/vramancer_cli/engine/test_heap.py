from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from contextlib import nullcontext
from pathlib import Path
import torch
from vramancer_cli.engine import heap

def peak(field="VmHWM"):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))

torch.zeros(8).to(torch.bfloat16)
Path("/proc/self/clear_refs").write_text("5")
before = peak("VmRSS")
kept = []
with heap.giving_back() if sys.argv[1] == "giving back" else nullcontext():
    for _ in range(40):
        wide = torch.ones(1 << 20)
        kept.append(wide.to(torch.bfloat16))
        kept.append(torch.ones(20_000))
        del wide
print(peak() - before)
"""


def peak_kib(how: str) -> int:
    run = [sys.executable, "-c", SCRIPT, how]
    return int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the heap of another C library is left as it is")
def test_what_is_freed_while_loading_goes_back_to_the_system() -> None:
    held_kib = 40 * (2 * 1024 + 80)
    assert peak_kib("giving back") < 1.12 * held_kib
