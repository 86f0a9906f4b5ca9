"""Our own kernels for CPUs, in C++: torch operators under `torch.ops.vramancer`, where this installation has them.

One .cpp file for each family of operators and for each instruction set; `setup.py` builds them all into one library. It
is absent where there was no compiler: whoever uses an operator asks `is_there` first and has another way.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

import torch

from vramancer_cli.telemetry import log

LIBRARY: Final = Path(__file__).with_name("kernels.so")
INSTRUCTION_SETS: Final = ("plain C++", "AVX2", "AVX512-VNNI")
"""As `isa.cpp` numbers them."""

_log = log.get("engine")


@functools.cache
def is_there() -> bool:
    """Whether the operators exist; the first call loads them."""
    if not LIBRARY.is_file():
        return False
    try:
        torch.ops.load_library(LIBRARY)
    except (OSError, RuntimeError) as error:  # of another system, or another torch
        _log.warning("native kernels not loaded", error=str(error.__cause__ or error))
        return False
    return True


def instruction_set() -> str | None:
    """What the operators compute with on this processor; None where they are absent."""
    return INSTRUCTION_SETS[torch.ops.vramancer.isa()] if is_there() else None
