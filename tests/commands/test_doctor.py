from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from rich.console import Console

from commands import doctor
from tests.helpers import verbs
from tests.helpers.verbs import InProcess, run_verb, terminal
from vramancer_cli.doctor.finding import Finding
from vramancer_cli.engine import families

CHECKS = [
    "program", "Python", "system", "libraries", "modules", "chat page", "devices", "kernels", "threads", "child process",
    "built-in model", "state folder", "API port", "node port", "mDNS", "addresses", "disk",
]  # fmt: skip


def test_a_whole_installation_exits_with_0(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = InProcess(tmp_path / "state", monkeypatch, capsys)("doctor", "--port", "0", "--node-port", "0")
    assert (ran.code, ran.err) == (0, ""), ran.out
    *lines, summary = ran.out.splitlines()
    assert [line[10:26].strip() for line in lines if line[2:10].strip()] == CHECKS
    assert summary.startswith("16 checks: ") and "failed" not in ran.out
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in ran.out
    assert not (tmp_path / "state").exists(), "it leaves no trace"


async def test_what_is_broken_has_failed_and_the_rest_is_still_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process of its own, which has everything to import."""
    monkeypatch.setattr(verbs, "DEADLINE_S", 90.0)
    (tmp_path / "credentials.json").write_text("garbage")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        ran = await run_verb(tmp_path, "doctor", "--json", "--families", VRM_PORT=port, VRM_NODE_PORT=port)
    report = json.loads(ran.out)
    states = {found["name"]: found["state"] for found in report["findings"]}
    assert (ran.code, report["ok"], report["frozen"]) == (1, False, False)
    assert list(states) == [*CHECKS, "model families"]
    assert [name for name, state in states.items() if state == "failed"] == ["state folder", "API port"]
    assert states["node port"] == "warning"
    words = {found["name"]: found["words"] for found in report["findings"]}
    assert "credentials.json is broken" in words["state folder"]
    assert f"process {os.getpid()}" in words["API port"]
    count = len(families.supported_families())
    assert words["model families"].startswith(f"{count} of {count} import, in ")


def test_ctrl_c_ends_it_in_the_middle_of_a_check(tmp_path: Path) -> None:
    with terminal(tmp_path, "doctor") as running:
        running.see("libraries…")
        running.interrupt()
        assert running.end() == 130
        assert "Traceback" not in running.screen


def test_its_help_has_examples_and_fits_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = InProcess(tmp_path, monkeypatch, capsys)("doctor", "--help")
    assert ran.code == 0
    assert "   vramancer doctor --families" in ran.out.split("Examples")[1]
    assert max(map(len, ran.out.splitlines())) <= 80


def shown(finding: Finding, *, colours: bool, width: int = 60) -> str:
    system = "truecolor" if colours else None
    console = Console(width=width, color_system=system, force_terminal=colours, highlight=False)  # pyright: ignore[reportArgumentType]
    with console.capture() as captured:
        console.print(doctor.FindingLine(finding))
    return captured.get()


def test_a_failed_check_is_red_and_its_hint_stands_below() -> None:
    broken = Finding("API port", "failed", "Port 5000 is [b]busy[/b].", "Choose another.")
    text = shown(broken, colours=False)
    first, second = (line.rstrip() for line in text.splitlines())
    assert first == "● failed  API port        Port 5000 is [b]busy[/b]."
    assert second == " " * 26 + "Choose another."
    red = shown(broken, colours=True)
    assert red.count("\x1b[1;31m") >= 2
    assert "\x1b[1;31m" not in shown(Finding("API port", "ok", "5000 is free"), colours=True)


def test_what_a_machine_says_cannot_command_the_terminal() -> None:
    assert "\x1b" not in shown(Finding("devices", "ok", "cpu \x1b[2Jevil"), colours=False)


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (["ok"], "1 check: all is well."),
        (["ok", "warning"], "2 checks: 1 warning."),
        (["failed", "warning", "warning", "ok"], "4 checks: 1 failed, 2 warnings."),
    ],
)
def test_the_summary_counts(states: list[str], words: str) -> None:
    findings = [Finding(str(place), state, "") for place, state in enumerate(states)]  # pyright: ignore[reportArgumentType]
    assert doctor._summary(findings).plain == words
