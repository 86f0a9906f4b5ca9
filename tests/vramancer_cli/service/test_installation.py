"""Installing and removing with a systemctl of our own: what a real one rarely does. A real one is in test_systemd."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from tests.vramancer_cli.service.stand_ins import Tool, stand_in
from vramancer_cli.service import installation
from vramancer_cli.service.contracts import Account, ServiceSystem
from vramancer_cli.service.installation import NoServiceSystemError, ServiceError
from vramancer_cli.service.systemd import UNIT, systemd

COMMAND = ["/opt/vramancer", "start"]
# $1 and $2 are --user --no-ask-password. FAILING is a verb that fails, as often as the file says.
SYSTEMCTL = """
[ "$(cat failing 2>/dev/null)" = "$3" ] && { echo "Failed to $3: no" >&2; exit 1; }
case "$3" in
  show) [ "$4" = --property=Version ] && exit 0
    [ -f running ] && echo ActiveState=active || echo ActiveState=inactive
    [ -f "$UNIT_FILE" ] && echo LoadState=loaded || echo LoadState=not-found ;;
  restart) touch running ;;
  stop) rm -f running ;;
esac
exit 0
"""


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceSystem:
    found = systemd(Account("ann", 1000, tmp_path / "home", tmp_path / "cfg", tmp_path / "app"))
    monkeypatch.setenv("UNIT_FILE", str(found.file))
    return found


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    return stand_in(tmp_path / "tools", "systemctl", SYSTEMCTL, monkeypatch)


def fail_at(tool: Tool, verb: str) -> None:
    (tool.record.parent / "failing").write_text(verb)


def verbs(tool: Tool) -> list[str]:
    assert all(call[:2] == ["--user", "--no-ask-password"] for call in tool.calls())
    return [call[2] for call in tool.calls()]


def test_the_file_is_there_before_the_system_looks(system: ServiceSystem, systemctl: Tool) -> None:
    installation.install(system, COMMAND)
    assert system.file.read_text() == system.render(COMMAND)
    assert stat.S_IMODE(system.file.stat().st_mode) == 0o600
    assert [path.name for path in system.file.parent.iterdir()] == [UNIT], "nothing is left beside it"
    assert verbs(systemctl) == ["show", "daemon-reload", "enable", "reset-failed", "restart"]


@pytest.mark.parametrize("verb", ["daemon-reload", "enable", "restart"])
def test_a_step_that_fails_leaves_nothing(verb: str, system: ServiceSystem, systemctl: Tool) -> None:
    fail_at(systemctl, verb)
    with pytest.raises(
        ServiceError, match=rf"'systemctl --user --no-ask-password {verb}' failed: Failed to {verb}: no\."
    ):
        installation.install(system, COMMAND)
    assert list(system.file.parent.iterdir()) == []
    assert verbs(systemctl)[-4:] == ["stop", "disable", "daemon-reload", "reset-failed"]


def test_a_step_that_fails_leaves_the_older_service(system: ServiceSystem, systemctl: Tool) -> None:
    installation.install(system, COMMAND)
    older = system.file.read_text()
    fail_at(systemctl, "enable")
    with pytest.raises(ServiceError):
        installation.install(system, [*COMMAND, "--master"])
    assert system.file.read_text() == older
    assert verbs(systemctl)[-1] == "restart", "and it runs again"


def test_a_step_that_may_fail(system: ServiceSystem, systemctl: Tool) -> None:
    fail_at(systemctl, "reset-failed")
    installation.install(system, COMMAND)
    assert installation.state(system).running


def test_an_interruption_leaves_nothing(
    system: ServiceSystem, systemctl: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out = installation._carry_out
    calls: list[object] = []

    def interrupted(steps: object) -> None:
        calls.append(steps)
        if len(calls) == 1:
            raise KeyboardInterrupt
        carry_out(steps)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(installation, "_carry_out", interrupted)
    with pytest.raises(KeyboardInterrupt):
        installation.install(system, COMMAND)
    assert list(system.file.parent.iterdir()) == []
    assert "disable" in verbs(systemctl)


def test_removing_is_idempotent(system: ServiceSystem, systemctl: Tool) -> None:
    installation.install(system, COMMAND)
    assert installation.remove(system)
    assert not system.file.exists()
    assert not installation.state(system).running
    assert not installation.remove(system)


def test_one_that_still_runs_was_not_removed(system: ServiceSystem, systemctl: Tool) -> None:
    installation.install(system, COMMAND)
    fail_at(systemctl, "stop")
    with pytest.raises(ServiceError, match="still there: active"):
        installation.remove(system)


def test_without_systemd_nothing_is_made(
    system: ServiceSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(
        tmp_path / "tools", "systemctl", 'echo "Failed to connect to bus: No medium found" >&2; exit 1', monkeypatch
    )
    for change in (lambda: installation.install(system, COMMAND), lambda: installation.state(system)):
        with pytest.raises(
            NoServiceSystemError, match=r"systemd runs .*: Failed to connect to bus: No medium found\.$"
        ):
            change()
    assert not installation.remove(system), "where nothing was, nothing needs to answer"
    assert not (tmp_path / "cfg").exists()


def test_without_systemd_what_lies_there_is_not_called_removed(
    system: ServiceSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    system.file.parent.mkdir(parents=True)
    system.file.write_text("")
    with pytest.raises(NoServiceSystemError, match="systemctl: not found"):
        installation.remove(system)
    assert system.file.exists()


def test_a_folder_that_cannot_be_written(system: ServiceSystem, systemctl: Tool, tmp_path: Path) -> None:
    (tmp_path / "cfg").write_text("a file")
    with pytest.raises(ServiceError, match=r"vramancer.service cannot be (read|written): Not a directory"):
        installation.install(system, COMMAND)
    assert verbs(systemctl) == ["show"], "nothing was started"


def test_every_command_has_a_deadline() -> None:
    with pytest.raises(ServiceError, match="did not end within 0 s"):
        installation.run([sys.executable, "-c", "import time; time.sleep(60)"], deadline_s=0.3)


def test_the_one_file_programs_libraries_are_not_for_the_systems_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/tmp/_MEI123")
    asked = [sys.executable, "-c", "import os; print(os.environ.get('LD_LIBRARY_PATH'))"]
    assert installation.run(asked).out == "/tmp/_MEI123\n"
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert installation.run(asked).out == "None\n"
    assert installation.run(["vramancer-has-no-such-tool"]).code == 127
