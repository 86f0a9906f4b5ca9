"""The whole examination, in order: what the later checks need comes first."""

from __future__ import annotations

from typing import Final

from vramancer_cli.doctor import computing, program, surroundings
from vramancer_cli.doctor.finding import Check
from vramancer_cli.doctor.surroundings import Surroundings

_IMPORT_S: Final = 180.0
"""The first import of torch, from a cold disk."""
_ANOTHER_FOLDER: Final = "Name another folder with --state-dir."


def checks(build: str, around: Surroundings) -> tuple[Check, ...]:
    """Independent of each other: each may be run whatever another found. `build`: what `--version` says."""
    return (
        Check("program", lambda: program.program(build)),
        Check("Python", program.python),
        Check("system", program.system),
        Check("libraries", program.libraries, _IMPORT_S),
        Check("modules", program.modules, _IMPORT_S),
        Check("chat page", program.page),
        Check("devices", computing.devices, 120.0),
        Check("kernels", computing.kernels),
        Check("threads", computing.threads, 2 * computing.THREAD_S),
        Check("child process", computing.child_process, computing.CHILD_S + 15.0),
        Check("built-in model", computing.builtin_model, 120.0),
        Check("state folder", around.state_folder, hint=_ANOTHER_FOLDER),
        Check("API port", around.api_port),
        Check("node port", around.peer_port),
        Check("mDNS", surroundings.mdns),
        Check("addresses", around.addresses),
        Check("disk", surroundings.disk, hint="Name a folder on another disk in HF_HOME."),
    )
