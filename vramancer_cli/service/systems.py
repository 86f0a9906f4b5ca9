"""Which service system this machine has, and every one of them by its name. Pure."""

from __future__ import annotations

import sys
from typing import Final

from vramancer_cli.service.contracts import Account, ServiceSystem, SystemName
from vramancer_cli.service.launchd import launchd
from vramancer_cli.service.systemd import systemd
from vramancer_cli.service.task_scheduler import task_scheduler

_SYSTEMS: Final = {"systemd": systemd, "launchd": launchd, "windows": task_scheduler}


def system_here(platform: str = sys.platform) -> SystemName:
    """By the kind of operating system; whether it answers is known only once it was asked."""
    return "windows" if platform == "win32" else "launchd" if platform == "darwin" else "systemd"


def system_named(name: SystemName, account: Account) -> ServiceSystem:
    return _SYSTEMS[name](account)
