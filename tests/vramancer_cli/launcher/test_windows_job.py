"""What can be checked without Windows: the structures are laid out as Microsoft documents them for 64 bits."""

from __future__ import annotations

import ctypes

from vramancer_cli.launcher.windows_job import ExtendedLimits, job_limits


def test_the_structure_has_the_documented_size_and_flags() -> None:
    assert ctypes.sizeof(ExtendedLimits) == 144
    assert job_limits().BasicLimitInformation.LimitFlags == 0x2800
    assert ExtendedLimits.IoInfo.offset == 64
