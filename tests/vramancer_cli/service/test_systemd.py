"""The unit's text, as systemd itself reads it: systemd-analyze, and a real user manager that runs what stands there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.user_manager import UserManager, user_manager
from vramancer_cli.errors import UsageError
from vramancer_cli.service.contracts import Answer, ServiceState
from vramancer_cli.service.systemd import exec_start, read, render

NASTY = [
    "plain", "two words", "", ";", "a;b", "$HOME", "${HOME}", "$", "$$", "%h", "100%", 'say "hi"', "it's",
    "back\\slash", "\\", "\\n", "é日本", "#", "-", "@", "&&", "|", "*", "~", "tail\\",
]  # fmt: skip
SHOW_ARGUMENTS = (
    "import json, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(json.dumps([sys.executable, *sys.argv[2:]]))"
)
# As the one-file program: its first process passes the signal on to its child, which is the node.
FORWARDING = """
import pathlib, signal, subprocess, sys
node = subprocess.Popen([sys.executable, "-c", '''
import pathlib, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
pathlib.Path(sys.argv[1], "up").touch()
signal.sigwait([signal.SIGTERM])
again = signal.sigtimedwait([signal.SIGTERM], 1.0)
pathlib.Path(sys.argv[1], "heard").write_text("once" if again is None else "twice")
''', sys.argv[1]])
signal.signal(signal.SIGTERM, lambda *_: node.send_signal(signal.SIGTERM))
sys.exit(node.wait())
"""
INSTALL = """
import pathlib, sys
from vramancer_cli.service import installation
from vramancer_cli.service.contracts import Account
from vramancer_cli.service.systemd import systemd
home = pathlib.Path.home()
system = systemd(Account("", 0, home, home / ".config", home / ".config" / "vramancer"))
getattr(installation, sys.argv[1])(system, *[sys.argv[2:]][: len(sys.argv) > 2])
"""


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UserManager]:
    with user_manager(tmp_path_factory.mktemp("manager")) as found:
        yield found


def change(manager: UserManager, *words: str) -> subprocess.CompletedProcess[str]:
    return manager.run(sys.executable, "-c", INSTALL, *words)


def shown(manager: UserManager) -> dict[str, str]:
    said = manager.systemctl("show", "vramancer.service", "-p", "LoadState,UnitFileState,ActiveState,SubState,Result")
    return dict(line.split("=", 1) for line in said.stdout.splitlines())


def test_quoting() -> None:
    assert exec_start(["/a b/p", "x y", "", "50%", "$HOME", 'q"\\']) == (r'"/a b/p" "x y" "" "50%%" "$$HOME" "q\"\\"')


def test_variables_are_not_replaced_in_a_programs_path_but_in_its_name_for_itself() -> None:
    assert exec_start(["/a$b/p", "x"]) == '@"/a$b/p" "/a$$b/p" "x"'


def test_a_line_break_would_be_another_setting() -> None:
    with pytest.raises(UsageError):
        render(["/bin/x", "--name", "a\nExecStartPre=/bin/evil"])


def verified(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("needs systemd-analyze")
    unit = folder / "vramancer.service"
    unit.write_text(text)
    run = folder / "run"
    run.mkdir(mode=0o700, exist_ok=True)
    return subprocess.run(
        [analyze, "verify", "--user", "--man=no", "--recursive-errors=no", str(unit)],
        env={"HOME": str(folder), "XDG_RUNTIME_DIR": str(run), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_systemd_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    program = tmp_path / "my %h $HOME ${x}" / "vramancer"
    program.parent.mkdir()
    program.symlink_to("/bin/true")
    ran = verified(tmp_path, render([str(program), *NASTY]))
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    wrong = verified(tmp_path, render([str(program), *NASTY]).replace("KillMode=mixed", "KillMode=gently"))
    assert "kill mode" in wrong.stderr, "the check can fail"
    gone = verified(tmp_path, render([f"{program}-gone"]))
    assert gone.returncode != 0, "it looks for the program under its true name"


def test_a_real_manager_reads_every_word_back(manager: UserManager, tmp_path: Path) -> None:
    program = tmp_path / "my %h $HOME ${HOME} $$" / "python"
    program.parent.mkdir()
    program.symlink_to(sys.executable)
    said = tmp_path / "said.json"
    changed = change(manager, "install", str(program), "-S", "-c", SHOW_ARGUMENTS, str(said), *NASTY)
    assert changed.returncode == 0, changed.stderr
    manager.wait_for("there", "sh", "-c", f"[ -s '{said}' ] && echo there")
    assert json.loads(said.read_text()) == [str(program), *NASTY]
    assert change(manager, "remove").returncode == 0


def test_its_node_hears_one_signal(manager: UserManager, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(FORWARDING)
    changed = change(manager, "install", sys.executable, str(program), str(tmp_path))
    assert changed.returncode == 0, changed.stderr
    manager.wait_for("up\n", "ls", str(tmp_path))
    assert shown(manager)["UnitFileState"] == "enabled"
    assert change(manager, "remove").returncode == 0
    assert (tmp_path / "heard").read_text() == "once"
    assert shown(manager)["LoadState"] == "not-found"
    assert not manager.unit.exists()


def test_a_crash_is_another_start_and_wrong_use_is_not(manager: UserManager) -> None:
    show = ("systemctl", "--user", "show", "vramancer.service")
    assert change(manager, "install", "/bin/sh", "-c", "sleep 1; kill -SEGV $$").returncode == 0
    manager.wait_for("SubState=auto-restart", *show)
    assert change(manager, "install", "/bin/sh", "-c", "sleep 1; exit 2").returncode == 0
    manager.wait_for("ActiveState=failed", *show)
    assert change(manager, "install", "/bin/sh", "-c", "sleep 1; exit 0").returncode == 0
    manager.wait_for("ActiveState=inactive", *show)
    assert change(manager, "remove").returncode == 0


def test_a_program_that_is_not_there_leaves_nothing(manager: UserManager) -> None:
    changed = change(manager, "install", "/opt/gone/vramancer", "start")
    assert changed.returncode != 0
    assert "restart' failed" in changed.stderr
    assert shown(manager)["LoadState"] == "not-found"
    assert [path for path in manager.unit.parent.rglob("*") if not path.is_dir()] == []


@pytest.mark.parametrize(
    ("there", "said", "state"),
    [
        (
            True,
            "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nSubState=running\nMainPID=7\n",
            ServiceState(True, True, True, "active (running)", 7),
        ),
        (
            True,
            "LoadState=loaded\nUnitFileState=enabled\nActiveState=activating\nSubState=auto-restart\nMainPID=0\n",
            ServiceState(True, True, False, "activating (auto-restart)"),
        ),
        (
            False,
            "LoadState=not-found\nUnitFileState=\nActiveState=inactive\nSubState=dead\nMainPID=0\n",
            ServiceState(False, False, False, "inactive (dead)"),
        ),
        (False, "", ServiceState(False, False, False, "unknown")),
    ],
)
def test_what_systemctl_shows(there: bool, said: str, state: ServiceState) -> None:
    assert read(there, Answer(0, said, "")) == state
