"""The join token of `vramancer join`: where it was given, and a warning where others can read it there.

Never imports torch or transport.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from commands import options
from commands.terminal import notes
from vramancer_cli.errors import UsageError

if TYPE_CHECKING:
    from vramancer_cli.runtime.enrolment import Token

FILE_LIMIT_BYTES: Final = 4096

TokenText = Annotated[
    str | None,
    options.option(
        "--token", "A join token; better VRM_JOIN_TOKEN or a file.", metavar="TOKEN", envvar="VRM_JOIN_TOKEN"
    ),
]
TokenFile = Annotated[Path | None, options.setting("--token-file", "The file with a join token.", metavar="FILE")]


@dataclass(frozen=True, slots=True)
class Given:
    """What a person gave to join with: a code, a token, or nothing."""

    code: str | None = None
    token: Token | None = None


def given(invocation: typer.Context, code: str | None, token: str | None, file: Path | None) -> Given:
    """Raises UsageError for more than one of them, TokenError for a typing error in a token."""
    if sum(value is not None for value in (code, token, file)) > 1:
        raise UsageError("--code, --token and --token-file exclude each other.", hint="Leave all but one of them out.")
    if token is None and file is None:
        return Given(code)
    source = invocation.get_parameter_source("token")
    if token is not None and source is not None and source.name == "COMMANDLINE":
        _warn("other users of this machine can see a token on a command line: use VRM_JOIN_TOKEN or --token-file.")
    from vramancer_cli.runtime.enrolment import parse_token

    return Given(token=parse_token(_text(file) if file else token or ""))


def _text(file: Path) -> str:
    """Raises UsageError."""
    try:
        with file.expanduser().open("rb") as opened:
            if os.name == "posix" and os.fstat(opened.fileno()).st_mode & 0o077:
                _warn(f"other users of this machine can read {file}: 'chmod 600 {file}' ends that.")
            return opened.read(FILE_LIMIT_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise UsageError(f"The token file {file} cannot be read: {error.strerror}.") from error


def _warn(text: str) -> None:
    notes().print(f"warning: {text}", markup=False, soft_wrap=True)
