"""systemd's user manager: the unit's text, and the systemctl commands around it.

Pure. The quoting follows systemd.service(5), "Command lines", and is tested against a real manager.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from vramancer_cli.service.contracts import (
    Account,
    Answer,
    ServiceState,
    ServiceSystem,
    Step,
    refuse_unwritable,
)

UNIT: Final = "vramancer.service"
_SYSTEMCTL: Final = ("systemctl", "--user", "--no-ask-password")
_ASKED: Final = "LoadState,UnitFileState,ActiveState,SubState,MainPID"

# Why these lines:
# - No After=network-online.target: the user manager has no such target. A node without a network tries again.
# - RestartPreventExitStatus: wrong use (2) and no trust (4) are the same ten seconds later.
# - KillMode=mixed: SIGTERM goes to the first process alone. The one-file program's first process passes it on to the
#   node, so with control-group the node would hear it twice. What is left after the deadline is killed.
# - WorkingDirectory=/: `python -m` looks for modules there first, and nobody else can put one there.
# - Hardening is what needs no namespaces (a user manager may be unable to make them) and lets GPU drivers be:
#   no PrivateDevices, no MemoryDenyWriteExecute (drivers and torch compile while they run).
_TEXT: Final = """\
# Written by 'vramancer service install'. 'vramancer service remove' deletes it.
[Unit]
Description=VRAMancer node

[Service]
Type=exec
ExecStart={command}
WorkingDirectory=/
Restart=on-failure
RestartSec=10
RestartPreventExitStatus=2 4
KillMode=mixed
TimeoutStopSec=20
UMask=0077
NoNewPrivileges=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native

[Install]
WantedBy=default.target
"""


def systemd(account: Account) -> ServiceSystem:
    def unit(verb: str) -> tuple[str, ...]:
        return (*_SYSTEMCTL, verb, UNIT)

    reload = Step((*_SYSTEMCTL, "daemon-reload"))
    return ServiceSystem(
        name="systemd",
        file=account.config / "systemd" / "user" / UNIT,
        encoding="utf-8",
        render=render,
        probe=(*_SYSTEMCTL, "show", "--property=Version"),
        probe_hint="Log in as this user rather than through su or sudo. In a container, let its own supervisor "
        "run 'vramancer start'.",
        install=(reload, Step(unit("enable")), Step(unit("reset-failed"), "may"), Step(unit("restart"))),
        remove=(Step(unit("stop"), "may"), Step(unit("disable"), "may")),
        forget=(reload, Step(unit("reset-failed"), "may")),
        query=(*unit("show"), f"--property={_ASKED}"),
        read=read,
        log_command="journalctl --user -u vramancer -f",
        when="It runs while you are logged in. To run it from boot on, without a login: loginctl enable-linger",
    )


def render(command: Sequence[str]) -> str:
    """The unit's text. Raises UsageError for a character that no unit can hold."""
    refuse_unwritable(command)
    return _TEXT.format(command=exec_start(command))


def exec_start(command: Sequence[str]) -> str:
    """`command` as systemd reads it back, word for word.

    Variables are replaced in every word but the path of the program. Where that holds a dollar sign, the path and the
    program's own name for itself are written apart, which is what '@' announces.
    """
    program, *arguments = command
    path = _quoted(program)
    words = [f"@{path}", _without_variables(program)] if "$" in program else [path]
    return " ".join([*words, *map(_without_variables, arguments)])


def _without_variables(word: str) -> str:
    return _quoted(word.replace("$", "$$"))


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def read(file_is_there: bool, answer: Answer) -> ServiceState:
    """From `systemctl show`, whose words are the same in every language."""
    said = dict(line.split("=", 1) for line in answer.out.splitlines() if "=" in line)
    active, pid = said.get("ActiveState", "unknown"), said.get("MainPID", "0")
    return ServiceState(
        installed=file_is_there or said.get("LoadState", "not-found") != "not-found",
        enabled=said.get("UnitFileState") == "enabled",
        running=active == "active",
        detail=f"{active} ({said['SubState']})" if said.get("SubState") else active,
        pid=int(pid) if pid.isdigit() and int(pid) else None,
    )
