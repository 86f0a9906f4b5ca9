"""Installing, asking and removing: writes the file and runs the commands that a ServiceSystem names.

After a failure everything is as it was before. Every command has a deadline. Never a terminal.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vramancer_cli.errors import VramancerError
from vramancer_cli.service.contracts import Answer, ServiceState, ServiceSystem, Step

DEADLINE_S: Final = 60.0
"""For one command: stopping a node may take the 20 s that the service files allow."""
_POLL_S: Final = 0.2
_SHOWN_CHARACTERS: Final = 300
_NOT_FOUND: Final = 127


class NoServiceSystemError(VramancerError):
    """No service system answers here."""


class ServiceError(VramancerError):
    """The service could not be changed."""


def install(system: ServiceSystem, command: Sequence[str]) -> None:
    """Lets the system run `command` now and at every login. An older service is replaced.

    Raises UsageError, NoServiceSystemError, ServiceError; then an older service is still there, and else nothing.
    """
    data = system.render(command).encode(system.encoding)
    _require(system)
    before = _content(system.file)
    try:
        _write(system.file, data)
        _carry_out(system.install)
    except BaseException:
        _put_back(system, before)
        raise


def remove(system: ServiceSystem) -> bool:
    """Stops, disables and deletes it; False where there was nothing. Raises NoServiceSystemError, ServiceError."""
    if not system.file.exists() and not (_reason_against(system) is None and state(system).installed):
        return False
    _require(system)
    _carry_out(system.remove)
    system.file.unlink(missing_ok=True)
    _carry_out(system.forget)
    left = state(system)
    if left.installed or left.running:
        raise ServiceError(f"The service is still there: {left.detail}.", hint=f"See its log: {system.log_command}")
    return True


def state(system: ServiceSystem) -> ServiceState:
    """Raises NoServiceSystemError, ServiceError."""
    _require(system)
    return system.read(system.file.exists(), run(system.query))


def run(argv: Sequence[str], deadline_s: float = DEADLINE_S) -> Answer:
    """Runs one command to its end; a missing one answers 127, as in a shell. Raises ServiceError at the deadline."""
    try:
        ran = subprocess.run(
            [*_own_libraries(), *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=deadline_s,
        )
    except FileNotFoundError:
        return Answer(_NOT_FOUND, "", f"{argv[0]}: not found")
    except subprocess.TimeoutExpired:
        raise ServiceError(f"'{_words(argv)}' did not end within {deadline_s:.0f} s.") from None
    except OSError as error:
        raise ServiceError(f"'{_words(argv)}' could not be run: {error.strerror or error}.") from error
    return Answer(ran.returncode, ran.stdout.decode(errors="replace"), ran.stderr.decode(errors="replace"))


def _own_libraries() -> list[str]:
    """The one-file program's own libraries are not for the system's tools, which would break over them."""
    frozen = getattr(sys, "frozen", False) and sys.platform.startswith("linux")
    return ["env", "-u", "LD_LIBRARY_PATH"] if frozen and shutil.which("env") else []


def _require(system: ServiceSystem) -> None:
    reason = _reason_against(system)
    if reason is not None:
        raise NoServiceSystemError(f"{system.name} runs no services for this user: {reason}", hint=system.probe_hint)


def _reason_against(system: ServiceSystem) -> str | None:
    """Why the system does not answer this user, as a sentence; None where it does."""
    if not system.probe:
        return None
    answer = run(system.probe)
    return None if answer.code == 0 else _complaint(answer)


def _carry_out(steps: Sequence[Step]) -> None:
    for step in steps:
        if step.outcome == "until_gone":
            _wait_gone(step.argv)
            continue
        answer = run(step.argv)
        if answer.code != 0 and step.outcome == "must":
            raise ServiceError(f"'{_words(step.argv)}' failed: {_complaint(answer)}")


def _wait_gone(argv: Sequence[str]) -> None:
    until = time.monotonic() + DEADLINE_S
    while run(argv).code == 0:
        if time.monotonic() > until:
            raise ServiceError(f"The old service did not end within {DEADLINE_S:.0f} s.")
        time.sleep(_POLL_S)


def _put_back(system: ServiceSystem, before: bytes | None) -> None:
    """What was there before; its own failures are not worth hiding the first one for."""
    with contextlib.suppress(ServiceError, OSError):
        if before is None:
            _try_all(system.remove)
            system.file.unlink(missing_ok=True)
            _try_all(system.forget)
        else:
            _write(system.file, before)
            _try_all(system.install)


def _try_all(steps: Sequence[Step]) -> None:
    for step in steps:
        with contextlib.suppress(ServiceError):
            _carry_out([step])


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServiceError(f"{file} cannot be read: {error.strerror}.") from error


def _write(file: Path, data: bytes) -> None:
    """Beside the old one, synced, then in its place. Raises ServiceError, and then `file` is what it was."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, new = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
        try:
            with os.fdopen(handle, "wb") as output:
                output.write(data)
                output.flush()
                os.fsync(output.fileno())
            Path(new).replace(file)
        except BaseException:
            Path(new).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ServiceError(f"{file} cannot be written: {error.strerror}.") from error


def _words(argv: Sequence[str]) -> str:
    return " ".join(argv[:4])


def _complaint(answer: Answer) -> str:
    """What the command said, on one line without control characters, as a sentence."""
    said = " ".join((answer.err.strip() or answer.out.strip() or f"exit code {answer.code}").split())
    shown = "".join(c for c in said if c.isprintable())[:_SHOWN_CHARACTERS]
    return shown if shown.endswith((".", "!", "?")) else shown + "."
