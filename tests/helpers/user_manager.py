"""A real `systemd --user` with nothing else in its world: its own processes, cgroup, /run and home.

Needs root on a Linux with systemd's programs, but not a machine that systemd booted.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

SYSTEMD = Path("/usr/lib/systemd/systemd")
NEEDS = "needs a systemd user manager: root, unshare, nsenter and systemd's programs"
DEADLINE_S = 30.0
_CGROUP_ROOTS = [Path("/sys/fs/cgroup", name) for name in ("", "systemd", "unified")]
# The shell stays the first process of the namespace: as the first one, systemd would take itself for the machine's.
_INSIDE = """
mount --make-rprivate / && mount -t tmpfs none /run && mkdir -p /run/systemd/system "$XDG_RUNTIME_DIR" || exit 1
chmod 700 "$XDG_RUNTIME_DIR"
"$0" --user --log-target=console &
wait
"""


@dataclass(frozen=True)
class UserManager:
    """`pid` is the namespace's first process, `home` the folder in which the manager looks for units."""

    pid: int
    home: Path
    environment: dict[str, str]

    @property
    def unit(self) -> Path:
        return self.home / ".config" / "systemd" / "user" / "vramancer.service"

    def run(self, *argv: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Runs `argv` where the manager is, with `more` in the environment."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-p", "-C", "--wd=" + str(Path.cwd())]
        return subprocess.run(
            [*enter, *argv], env={**self.environment, **more}, capture_output=True, text=True, timeout=120
        )

    def systemctl(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", "--user", *argv)

    def wait_for(self, text: str, *argv: str) -> str:
        """What the command says, once `text` is in it."""
        until = time.monotonic() + 90
        while text not in (said := self.run(*argv)).stdout:
            assert time.monotonic() < until, said.stdout + said.stderr
            time.sleep(0.2)
        return said.stdout


@contextmanager
def user_manager(folder: Path) -> Iterator[UserManager]:
    """Skips the test where there can be none; fails it where one does not come up."""
    programs = ("unshare", "nsenter", "systemctl", "mount")
    if not hasattr(os, "getuid") or os.getuid() != 0 or not SYSTEMD.exists() or not all(map(shutil.which, programs)):
        pytest.skip(NEEDS)
    home = folder / "home"
    home.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("VRM_", "XDG_", "DBUS_")) and k != "INVOCATION_ID"}
    environment = {**kept, "HOME": str(home), "XDG_RUNTIME_DIR": "/run/user/0", "COLUMNS": "80"}
    with _own_cgroups(f"vramancer-test-{os.getpid()}") as procs, (folder / "manager.log").open("wb") as log:
        unshare = subprocess.Popen(
            ["unshare", "-m", "-p", "-C", "-f", "--mount-proc", "--kill-child", "sh", "-c", _INSIDE, str(SYSTEMD)],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            preexec_fn=lambda: [file.write_text(str(os.getpid())) for file in procs],
        )  # fmt: skip
        try:
            manager = UserManager(_first_child(unshare.pid), home, environment)
            _wait_up(manager, folder / "manager.log")
            yield manager
        finally:
            unshare.send_signal(signal.SIGKILL)  # and the kernel all that is in the namespace
            unshare.wait(10)


@contextmanager
def _own_cgroups(name: str) -> Iterator[list[Path]]:
    """A cgroup in every hierarchy that systemd would use. The manager moves what is in its own one about."""
    folders = [root / name for root in _CGROUP_ROOTS if (root / "cgroup.procs").exists()]
    try:
        for folder in folders:
            folder.mkdir()
    except OSError:
        pytest.skip(NEEDS)
    try:
        yield [folder / "cgroup.procs" for folder in folders]
    finally:
        for folder in folders:
            _remove_cgroup(folder)


def _remove_cgroup(folder: Path) -> None:
    """Once the last process in it is gone, which the kernel sees to in its own time."""
    until = time.monotonic() + DEADLINE_S
    while folder.exists():
        assert time.monotonic() < until, f"{folder} does not get empty"
        for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            with contextlib.suppress(OSError):
                inner.rmdir()
        with contextlib.suppress(OSError):
            folder.rmdir()
        time.sleep(0.05)


def _first_child(pid: int) -> int:
    until = time.monotonic() + DEADLINE_S
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while time.monotonic() < until:
        if found := children.read_text().split():
            return int(found[0])
        time.sleep(0.02)
    raise AssertionError("unshare started nothing")


def _wait_up(manager: UserManager, log: Path) -> None:
    until = time.monotonic() + DEADLINE_S
    while manager.systemctl("is-system-running").stdout.strip() not in {"running", "degraded"}:
        if not Path(f"/proc/{manager.pid}").exists():
            pytest.skip(f"{NEEDS} ({log.read_text(errors='replace')[-200:]})")
        assert time.monotonic() < until, log.read_text(errors="replace")
        time.sleep(0.1)
