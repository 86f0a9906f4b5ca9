from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import typer

from commands.join_token import Given, given
from transport.tokens import Token, TokenError
from vramancer_cli.errors import UsageError

TOKEN = Token(bytes(range(32)), bytes(range(16)))


class Source:
    def __init__(self, name: str) -> None:
        self.name = name


class Invocation:
    """Of typer's context, the one question that is asked."""

    def __init__(self, source: str = "ENVIRONMENT") -> None:
        self.source = source

    def get_parameter_source(self, _name: str) -> Source:
        return Source(self.source)


def read(
    code: str | None = None, token: str | None = None, file: Path | None = None, source: str = "ENVIRONMENT"
) -> Given:
    return given(cast(typer.Context, Invocation(source)), code, token, file)


def test_nothing_and_a_code_are_passed_on() -> None:
    assert read() == Given()
    assert read("4-otter-maple-drum") == Given("4-otter-maple-drum")


def test_a_token_of_the_environment_is_taken_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert read(token=str(TOKEN)) == Given(token=TOKEN)
    assert capsys.readouterr().err == ""


def test_on_the_command_line_it_works_and_warns(capsys: pytest.CaptureFixture[str]) -> None:
    assert read(token=str(TOKEN), source="COMMANDLINE") == Given(token=TOKEN)
    warning = capsys.readouterr().err
    assert warning.startswith("warning: other users of this machine can see a token")
    assert str(TOKEN)[60:] not in warning


def test_a_private_file_is_read_and_an_open_one_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    assert read(file=file) == Given(token=TOKEN)
    assert capsys.readouterr().err == ""
    file.chmod(0o640)
    assert read(file=file) == Given(token=TOKEN)
    assert "chmod 600" in capsys.readouterr().err


def test_a_file_that_is_none_or_holds_something_else(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        read(file=tmp_path / "none")
    (tmp_path / "picture").write_bytes(bytes(range(256)) * 1000)
    with pytest.raises(TokenError):
        read(file=tmp_path / "picture")


def test_more_than_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exclude each other"):
        read("4-otter-maple-drum", str(TOKEN))
    with pytest.raises(UsageError, match="exclude each other"):
        read(token=str(TOKEN), file=tmp_path / "token")
