from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import app
from tests.helpers.verbs import PROGRAM, environment
from transport.errors import PairingError, TransportError
from vramancer_cli import __main__ as doorbell
from vramancer_cli.errors import DoesNotFitError, NodeLostError, UsageError


def ring(monkeypatch: pytest.MonkeyPatch, error: BaseException | None) -> int:
    def run(_arguments: list[str]) -> int:
        if error is not None:
            raise error
        return 0

    monkeypatch.setattr(app, "run", run)
    return doorbell.main([])


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("Not so.", hint="But so."), 2, "error: Not so. But so.\n"),
        (DoesNotFitError("3 GiB are missing."), 5, f"error: 3 GiB are missing. {DoesNotFitError.hint}\n"),
        (PairingError(), 4, f"error: The pairing code was not accepted. {PairingError.hint}\n"),
        (TransportError("Two\nlines."), 1, "error: Two lines.\n"),
        (NodeLostError(), 1, "error: A node that held part of the model was lost in the middle of the answer.\n"),
    ],
)
def test_an_error_for_people_is_one_line_and_its_exit_code(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ring(monkeypatch, error) == code
    assert capsys.readouterr() == ("", line)


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        ring(monkeypatch, ZeroDivisionError())


def test_an_interrupt_is_quiet_and_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ring(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "")


def test_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ring(monkeypatch, None) == 0


def test_ctrl_c_while_it_looks_around_is_130_without_a_word(tmp_path: Path) -> None:
    """A real signal, while `join` looks for clusters."""
    process = subprocess.Popen(
        [*PROGRAM, "join", "--auto-discover"],
        env=environment(tmp_path, VRM_CODE="4-otter-maple-drum"),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith("looking for clusters")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(15) == 130
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    verb = [*PROGRAM, "start", "--help"]
    process = subprocess.Popen(verb, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(tmp_path))
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(20) in (0, 1)
    assert process.stderr.read() == b""
    process.stderr.close()


def test_what_a_pipe_cannot_show_becomes_a_question_mark(tmp_path: Path) -> None:
    verb = [
        sys.executable,
        "-c",
        "from vramancer_cli.__main__ import _never_fail_on_characters as f; f(); print('日本')",
    ]
    ran = subprocess.run(
        verb, capture_output=True, check=True, timeout=20, env=environment(tmp_path, PYTHONIOENCODING="cp1252")
    )
    assert ran.stdout.strip() == b"??"
