"""launchd: the property list of a user's agent, and the launchctl commands around it.

Pure. Written after launchd.plist(5) and launchctl(1); not run by us on a Mac yet.
"""

from __future__ import annotations

import plistlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from vramancer_cli.service.contracts import (
    Account,
    Answer,
    ServiceState,
    ServiceSystem,
    Step,
    refuse_unwritable,
)

LABEL: Final = "vramancer.node"
_STATE: Final = re.compile(r"^\s*state = (.{1,60}?)\s*$", re.MULTILINE)
_PID: Final = re.compile(r"^\s*pid = (\d{1,10})\s*$", re.MULTILINE)


def launchd(account: Account) -> ServiceSystem:
    domain = f"gui/{account.user_id}"
    job = f"{domain}/{LABEL}"
    file = account.home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    log = account.home / "Library" / "Logs" / "vramancer.log"
    ask = ("launchctl", "print", job)
    # 'bootout' comes back before the old job has ended, and 'bootstrap' refuses a label that is still there.
    end = (Step(("launchctl", "bootout", job), "may"), Step(ask, "until_gone"))
    return ServiceSystem(
        name="launchd",
        file=file,
        encoding="utf-8",
        render=lambda command: render(command, log),
        probe=("launchctl", "print", domain),
        probe_hint="Log in at this Mac's own screen once; over ssh alone a user has no agents.",
        install=(*end, Step(("launchctl", "enable", job)), Step(("launchctl", "bootstrap", domain, str(file)))),
        remove=end,
        forget=(),
        query=ask,
        read=read,
        log_command=f"tail -f {shlex.quote(str(log))}",
        when="It runs while you are logged in.",
    )


def render(command: Sequence[str], log: Path) -> str:
    """The property list. Raises UsageError for a character that none can hold."""
    refuse_unwritable(command)
    return plistlib.dumps(_agent(command, log), sort_keys=False).decode()


def _agent(command: Sequence[str], log: Path) -> dict[str, Any]:
    return {
        "Label": LABEL,
        "ProgramArguments": list(command),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},  # not after 'vramancer stop'
        "ThrottleInterval": 10,
        "ExitTimeOut": 20,
        "ProcessType": "Interactive",  # a background one is given slow disks and processors
        "WorkingDirectory": "/",  # `python -m` looks for modules there first
        "Umask": 0o077,
        "StandardOutPath": str(log),
        "StandardErrorPath": str(log),
    }


def read(file_is_there: bool, answer: Answer) -> ServiceState:
    """From `launchctl print`: it fails for a job that is not loaded, and a loaded one starts at each login."""
    loaded = answer.code == 0
    state, pid = _STATE.search(answer.out), _PID.search(answer.out)
    detail = (state[1] if state else "unknown") if loaded else "not loaded"
    return ServiceState(
        installed=file_is_there or loaded,
        enabled=loaded,
        running=loaded and detail == "running",
        detail=detail,
        pid=int(pid[1]) if loaded and pid else None,
    )
