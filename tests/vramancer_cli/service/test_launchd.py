"""The property list as plistlib reads it, and the order of the commands, with a launchctl of our own.

There is no launchd here: that the real one takes them is not verified.
"""

from __future__ import annotations

import plistlib
from pathlib import Path

import pytest

from tests.vramancer_cli.service.stand_ins import Tool, stand_in
from vramancer_cli.errors import UsageError
from vramancer_cli.service import installation
from vramancer_cli.service.contracts import Account, Answer, ServiceState, ServiceSystem
from vramancer_cli.service.installation import NoServiceSystemError, ServiceError
from vramancer_cli.service.launchd import LABEL, launchd, read

COMMAND = ["/Applications/V & Co <1>/vramancer", "start", "--name", "a $b %c \"d\" 'e' ü", ""]
JOB = f"gui/501/{LABEL}"
# As documented: 'bootout' returns at once, and the label is gone only later (here: at the second question).
LAUNCHCTL = f"""
case "$1 $2" in
  "print gui/501") exit 0 ;;
  "print {JOB}")
    [ -f loaded ] || exit 113
    if [ -f ending ]; then rm -f ending loaded; fi
    printf '%s = {{\\n\\tstate = running\\n\\tpid = 4711\\n\\tspawn type = interactive\\n}}\\n' "$2" ;;
  "bootout {JOB}") [ -f loaded ] || exit 3; touch ending ;;
  "bootstrap gui/501")
    [ -f loaded ] && {{ echo "Bootstrap failed: 5: Input/output error" >&2; exit 5; }}
    [ -f "$3" ] && touch loaded ;;
esac
"""


@pytest.fixture
def agent(tmp_path: Path) -> ServiceSystem:
    return launchd(Account("ann", 501, tmp_path / "home", tmp_path / "cfg", tmp_path / "app"))


@pytest.fixture
def launchctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    return stand_in(tmp_path / "tools", "launchctl", LAUNCHCTL, monkeypatch)


def test_the_property_list(agent: ServiceSystem, tmp_path: Path) -> None:
    job = plistlib.loads(agent.render(COMMAND).encode(agent.encoding))
    assert job["Label"] == LABEL == agent.file.stem
    assert job["ProgramArguments"] == COMMAND
    assert job["RunAtLoad"] is True
    assert job["KeepAlive"] == {"SuccessfulExit": False}, "after 'vramancer stop' it stays stopped"
    assert job["Umask"] == 0o077, "the log holds pairing codes"
    assert job["StandardOutPath"] == job["StandardErrorPath"] == str(tmp_path / "home/Library/Logs/vramancer.log")
    assert "EnvironmentVariables" not in job


def test_a_control_character_is_refused(agent: ServiceSystem) -> None:
    with pytest.raises(UsageError):
        agent.render(["/bin/x", "a\x01b"])


def test_its_life(agent: ServiceSystem, launchctl: Tool) -> None:
    installation.install(agent, COMMAND)
    assert installation.state(agent) == ServiceState(True, True, True, "running", 4711)
    installation.install(agent, [*COMMAND, "--log-json"])  # which waits until the old label is gone
    assert "--log-json" in plistlib.loads(agent.file.read_bytes())["ProgramArguments"]
    called = launchctl.calls()
    assert called.count(["bootstrap", "gui/501", str(agent.file)]) == 2
    assert ["enable", JOB] in called
    assert installation.remove(agent)
    assert not agent.file.exists()
    assert installation.state(agent) == ServiceState(False, False, False, "not loaded")
    assert not installation.remove(agent)


def test_what_cannot_be_loaded_leaves_nothing(agent: ServiceSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = LAUNCHCTL.replace('[ -f "$3" ] && touch loaded', 'echo "Bootstrap failed: 125" >&2; exit 125')
    stand_in(tmp_path / "tools", "launchctl", script, monkeypatch)
    with pytest.raises(ServiceError, match="Bootstrap failed: 125"):
        installation.install(agent, COMMAND)
    assert list(agent.file.parent.iterdir()) == []


def test_over_ssh_alone_there_are_no_agents(agent: ServiceSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stand_in(
        tmp_path / "tools", "launchctl", 'echo "Could not find domain for user gui: 501" >&2; exit 112', monkeypatch
    )
    with pytest.raises(NoServiceSystemError, match="Could not find domain") as caught:
        installation.install(agent, COMMAND)
    assert "screen" in caught.value.hint
    assert not agent.file.parent.exists()


@pytest.mark.parametrize(
    ("there", "answer", "state"),
    [
        (True, Answer(113, "", "Could not find service"), ServiceState(True, False, False, "not loaded")),
        (True, Answer(0, "\tstate = not running\n", ""), ServiceState(True, True, False, "not running")),
        (False, Answer(0, "\tstate = running\n\tpid = 7\n", ""), ServiceState(True, True, True, "running", 7)),
        (True, Answer(0, "of another release", ""), ServiceState(True, True, False, "unknown")),
    ],
)
def test_what_launchctl_says(there: bool, answer: Answer, state: ServiceState) -> None:
    assert read(there, answer) == state
