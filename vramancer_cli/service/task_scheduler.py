"""Windows Task Scheduler: the task's XML, and the commands around it.

Pure. Written after Microsoft's "Task Scheduler Schema" and "schtasks"; not run by us on Windows yet.
"""

from __future__ import annotations

import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from vramancer_cli.service.contracts import (
    Account,
    Answer,
    ServiceState,
    ServiceSystem,
    Step,
    refuse_unwritable,
)

TASK: Final = "VRAMancer"
NAMESPACE: Final = "http://schemas.microsoft.com/windows/2004/02/mit/task"
_SHELL_SPECIAL: Final = '"%^&|<>!'
_DISABLED, _RUNNING = 1, 4
"""TASK_STATE, as numbers: the words are in Windows' own language."""
_DETAILS: Final = {1: "disabled", 2: "queued", 3: "ready", 4: "running"}

Tree = Mapping[str, "str | Tree"]
_SETTINGS: Final[Tree] = {
    "MultipleInstancesPolicy": "IgnoreNew",
    "DisallowStartIfOnBatteries": "false",
    "StopIfGoingOnBatteries": "false",
    "StartWhenAvailable": "true",
    "ExecutionTimeLimit": "PT0S",  # none: else a task ends after three days
    "Priority": "5",  # as programs have it: a task's own would be below
    "RestartOnFailure": {"Interval": "PT1M", "Count": "255"},
    "IdleSettings": {"StopOnIdleEnd": "false"},
}


def task_scheduler(account: Account) -> ServiceSystem:
    file, log = account.application / "service.xml", account.application / "service.log"
    powershell = ("powershell.exe", "-NoProfile", "-NonInteractive", "-Command")
    return ServiceSystem(
        name="windows",
        file=file,
        encoding="utf-16",
        render=lambda command: render(command, log, account.name),
        probe=(),
        probe_hint="",
        install=(
            Step(("schtasks", "/End", "/TN", TASK), "may"),
            Step(("schtasks", "/Create", "/TN", TASK, "/XML", str(file), "/F")),
            Step(("schtasks", "/Run", "/TN", TASK)),
        ),
        remove=(
            Step(("schtasks", "/End", "/TN", TASK), "may"),
            Step(("schtasks", "/Delete", "/TN", TASK, "/F"), "may"),
        ),
        forget=(),
        query=(*powershell, f"[int](Get-ScheduledTask -TaskName {TASK} -TaskPath '\\' -ErrorAction Stop).State"),
        read=read,
        log_command=f"powershell Get-Content -Wait '{log}'",
        when="It runs while you are logged on.",
    )


def render(command: Sequence[str], log: Path, user: str) -> str:
    """The task's XML. Raises UsageError for a character that the shell, which writes the log, would read as its own."""
    refuse_unwritable((*command, str(log)), also=_SHELL_SPECIAL)
    task: Tree = {
        "RegistrationInfo": {"Description": "VRAMancer node", "URI": f"\\{TASK}"},
        "Triggers": {"LogonTrigger": {"Enabled": "true", "UserId": user}},
        "Principals": {"Principal": {"UserId": user, "LogonType": "InteractiveToken", "RunLevel": "LeastPrivilege"}},
        "Settings": _SETTINGS,
        "Actions": {"Exec": {"Command": "conhost.exe", "Arguments": _arguments(command, log)}},
    }
    root = ET.Element("Task", {"version": "1.2", "xmlns": NAMESPACE})
    _grow(root, task)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-16"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _arguments(command: Sequence[str], log: Path) -> str:
    """A console host without a window, and in it a shell that writes the log, since Task Scheduler keeps no output.

    `call` stands first because the shell takes the outer quotes away where the first character is one.
    """
    shell = "--headless cmd.exe /d /v:off /c call"
    return f"{shell} {subprocess.list2cmdline(command)} >> {subprocess.list2cmdline([str(log)])} 2>&1"


def _grow(parent: ET.Element, tree: Tree) -> None:
    for name, value in tree.items():
        child = ET.SubElement(parent, name)
        if isinstance(value, str):
            child.text = value
        else:
            _grow(child, value)


def read(file_is_there: bool, answer: Answer) -> ServiceState:
    """From the number that the query prints; it fails where there is no such task."""
    del file_is_there  # only what the task was made from
    words = answer.out.split()
    state = int(words[-1]) if words and words[-1].isdigit() and len(words[-1]) < 3 else 0
    return ServiceState(
        installed=answer.code == 0,
        enabled=answer.code == 0 and state != _DISABLED,
        running=answer.code == 0 and state == _RUNNING,
        detail=_DETAILS.get(state, "unknown") if answer.code == 0 else "not registered",
    )
