"""Windows: run a program as a child that cannot outlive this process, and pass its exit code on.

A job object with KILL_ON_JOB_CLOSE (Microsoft, "Job Objects") holds the child: Windows closes the handle however this
process ends. Ctrl-C goes to every process of a console, so the child hears it by itself and this one only waits.
Written against the documented interface; not run by us yet.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

KILL_ON_JOB_CLOSE: Final = 0x2000
BREAKAWAY_OK: Final = 0x800
"""For `start --detach`, whose node is to outlive this console."""
EXTENDED_LIMIT_INFORMATION: Final = 9


class _BasicLimits(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION"""

    _fields_ = (
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", ctypes.c_uint32),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", ctypes.c_uint32),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", ctypes.c_uint32),
        ("SchedulingClass", ctypes.c_uint32),
    )


class ExtendedLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION; six IO counters lie between the basic limits and the memory limits."""

    _fields_ = (
        ("BasicLimitInformation", _BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


def job_limits() -> ExtendedLimits:
    limits = ExtendedLimits()
    limits.BasicLimitInformation.LimitFlags = KILL_ON_JOB_CLOSE | BREAKAWAY_OK
    return limits


def run_in_job(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Runs `command` on this console and returns its exit code. Raises OSError where it cannot be started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kernel: Any = ctypes.WinDLL("kernel32", use_last_error=True) if sys.platform == "win32" else None
    kernel.CreateJobObjectW.restype = ctypes.c_void_p
    job = ctypes.c_void_p(kernel.CreateJobObjectW(None, None))
    limits = job_limits()
    kernel.SetInformationJobObject(job, EXTENDED_LIMIT_INFORMATION, ctypes.byref(limits), ctypes.sizeof(limits))
    # Itself first: what is started from now on is in the job from its first instruction on.
    kernel.AssignProcessToJobObject(job, ctypes.c_void_p(kernel.GetCurrentProcess()))
    return subprocess.run(command, env=dict(environment), check=False).returncode
