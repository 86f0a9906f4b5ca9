from __future__ import annotations

import io
import signal
import sys

import pytest

from commands import terminal
from vramancer_cli.errors import UsageError


def test_plain_keeps_words_and_drops_commands() -> None:
    assert terminal.plain("naïve 日本 👩‍💻") == "naïve 日本 👩‍💻"
    assert terminal.plain("a\x1b[2J\x07\r\n\tb\x9b\u202e") == "a[2Jb"
    assert terminal.plain("a\n\tb\r\x1b", lines=True) == "a\n\tb"


def test_ask_ends_in_one_sentence_when_the_input_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(UsageError):
        terminal.ask("Code?")


def test_questions_go_to_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("  4-otter \n"))
    assert terminal.ask("Code [it is shown there]?") == "4-otter"
    assert capsys.readouterr() == ("", "Code [it is shown there]? ")


def test_waiting_is_a_line_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.waiting("loading torch…"):
        pass
    assert capsys.readouterr() == ("", "loading torch…\n")


def test_an_error_is_one_line_with_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_error(UsageError("Not\nso.", hint="But so [really]."))
    assert capsys.readouterr().err == "error: Not so. But so [really].\n"


@pytest.mark.parametrize("swallow", ["nothing", "silently", "as another error"])
def test_ctrl_c_counts_whatever_a_library_makes_of_it(swallow: str) -> None:
    with pytest.raises(KeyboardInterrupt), terminal.interruptible():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if swallow == "nothing":
                raise
            if swallow == "as another error":
                raise ImportError("no torch") from None
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), terminal.interruptible():
        _ = 1 // 0
