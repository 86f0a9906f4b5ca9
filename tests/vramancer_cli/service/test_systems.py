from __future__ import annotations

from pathlib import Path

import pytest

from vramancer_cli.service.contracts import Account, SystemName
from vramancer_cli.service.systems import system_here, system_named

ACCOUNT = Account("desk", 1000, Path("/home/ann"), Path("/home/ann/.cfg"), Path("/home/ann/.cfg/vramancer"))


@pytest.mark.parametrize(
    ("platform", "name", "file"),
    [
        ("linux", "systemd", "/home/ann/.cfg/systemd/user/vramancer.service"),
        ("darwin", "launchd", "/home/ann/Library/LaunchAgents/vramancer.node.plist"),
        ("win32", "windows", "/home/ann/.cfg/vramancer/service.xml"),
    ],
)
def test_each_platform_has_its_system_and_its_file(platform: str, name: SystemName, file: str) -> None:
    assert system_here(platform) == name
    system = system_named(name, ACCOUNT)
    assert (system.name, system.file.as_posix()) == (name, file)
