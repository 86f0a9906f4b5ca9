"""The task as an XML parser reads it, and the commands, with a schtasks of our own.

There is no Task Scheduler here: that the real one takes them is not verified.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.vramancer_cli.service.stand_ins import stand_in
from vramancer_cli.errors import UsageError
from vramancer_cli.service import installation
from vramancer_cli.service.contracts import Account, Answer, ServiceState, ServiceSystem
from vramancer_cli.service.installation import ServiceError
from vramancer_cli.service.task_scheduler import NAMESPACE, TASK, read, task_scheduler

COMMAND = [r"C:\Program Files\V\vramancer.exe", "start", "--model", r"D:\my models\ü's", "--name", "$a;b"]


@pytest.fixture
def scheduler(tmp_path: Path) -> ServiceSystem:
    return task_scheduler(Account("DESK\\Ann & Bo", 0, tmp_path, tmp_path / "cfg", tmp_path / "my app"))


def text(xml: ET.Element, path: str) -> str | None:
    return xml.findtext("/".join(f"{{{NAMESPACE}}}{name}" for name in path.split("/")))


def test_the_task(scheduler: ServiceSystem, tmp_path: Path) -> None:
    xml = ET.fromstring(scheduler.render(COMMAND).encode(scheduler.encoding))
    assert xml.tag == f"{{{NAMESPACE}}}Task"
    assert text(xml, "Triggers/LogonTrigger/UserId") == "DESK\\Ann & Bo", "of everybody only an administrator may"
    assert text(xml, "Principals/Principal/UserId") == "DESK\\Ann & Bo"
    assert text(xml, "Principals/Principal/RunLevel") == "LeastPrivilege"
    assert text(xml, "Settings/RestartOnFailure/Interval") == "PT1M"
    assert text(xml, "Settings/ExecutionTimeLimit") == "PT0S"
    assert text(xml, "Settings/DisallowStartIfOnBatteries") == "false"
    assert text(xml, "Actions/Exec/Command") == "conhost.exe"
    log = tmp_path / "my app" / "service.log"
    assert text(xml, "Actions/Exec/Arguments") == (
        "--headless cmd.exe /d /v:off /c call "
        r'"C:\Program Files\V\vramancer.exe" start --model "D:\my models\ü' + "'s\" --name $a;b"
        f' >> "{log}" 2>&1'
    )


def test_the_file_is_in_the_encoding_that_it_names(scheduler: ServiceSystem) -> None:
    data = scheduler.render(COMMAND).encode(scheduler.encoding)
    assert data[:2] in (b"\xff\xfe", b"\xfe\xff")
    assert data.decode("utf-16").startswith('<?xml version="1.0" encoding="UTF-16"?>')


@pytest.mark.parametrize("word", ["%USERNAME%", "a&b", 'a"b', "a^b", "a|b", "a>b", "a!b", "a\nb"])
def test_what_the_shell_would_take_for_its_own_is_refused(word: str, scheduler: ServiceSystem) -> None:
    with pytest.raises(UsageError, match="cannot hold"):
        scheduler.render([*COMMAND, word])


def test_its_commands(scheduler: ServiceSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 'case "$1" in /End) exit 1 ;; /Create) touch made ;; /Delete) rm made ;; esac'
    schtasks = stand_in(tmp_path / "tools", "schtasks", asked, monkeypatch)
    shell = stand_in(tmp_path / "tools", "powershell.exe", "[ -f made ] && echo 4", monkeypatch)
    installation.install(scheduler, COMMAND)
    assert installation.state(scheduler) == ServiceState(True, True, True, "running")
    assert installation.remove(scheduler)
    assert schtasks.calls() == [
        ["/End", "/TN", TASK],
        ["/Create", "/TN", TASK, "/XML", str(scheduler.file), "/F"],
        ["/Run", "/TN", TASK],
        ["/End", "/TN", TASK],
        ["/Delete", "/TN", TASK, "/F"],
    ]
    assert shell.calls()[0][-1] == "[int](Get-ScheduledTask -TaskName VRAMancer -TaskPath '\\' -ErrorAction Stop).State"
    assert not scheduler.file.exists()
    assert not installation.remove(scheduler)


def test_a_task_that_is_still_there_was_not_removed(
    scheduler: ServiceSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path / "tools", "schtasks", 'echo "Access is denied." >&2; exit 1', monkeypatch)
    stand_in(tmp_path / "tools", "powershell.exe", "echo 4", monkeypatch)
    with pytest.raises(ServiceError, match="still there: running"):
        installation.remove(scheduler)
    with pytest.raises(ServiceError, match="Access is denied"):
        installation.install(scheduler, COMMAND)
    assert not scheduler.file.exists()


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (Answer(0, "3\n", ""), ServiceState(True, True, False, "ready")),
        (Answer(0, "1\n", ""), ServiceState(True, False, False, "disabled")),
        (Answer(1, "", "No MSFT_ScheduledTask objects found"), ServiceState(False, False, False, "not registered")),
        (Answer(0, "", ""), ServiceState(True, True, False, "unknown")),
    ],
)
def test_what_the_query_prints(answer: Answer, state: ServiceState) -> None:
    assert read(True, answer) == state
