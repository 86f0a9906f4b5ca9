"""What a node keeps on disk between starts: who it is, the cluster's authority (on the head), and what runs now.

Every file is written anew beside the old one, synced, and put in its place, so that a crash leaves the old or the
new one whole. Files are 0600, the folder 0700. Never sockets, loops or torch here.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

import msgspec
import psutil

from transport.errors import TrustError
from transport.identity import ClusterAuthority, Credentials
from transport.types import Address
from vramancer_cli.errors import VramancerError

CREDENTIALS_FILE: Final = "credentials.json"
AUTHORITY_FILE: Final = "authority.pem"
HEAD_FILE: Final = "head.json"
RUN_FILE: Final = "run.json"
FILE_LIMIT_BYTES: Final = 64 * 1024
_CLOCK_SLACK_S: Final = 2.0
"""A process's start time, read twice, may differ by rounding; a reused pid differs by more."""

_T = TypeVar("_T")


class StateFolderError(VramancerError):
    """The state folder cannot be used."""

    hint = "Name another folder with --state-dir, or move the broken file away."


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The program that runs out of this folder: `create_time_s` tells a reused pid from the real one."""

    pid: int
    create_time_s: float
    api_url: str
    node_port: int
    role: Literal["head", "worker"]

    @classmethod
    def of_this_process(cls, api_url: str, node_port: int, role: Literal["head", "worker"]) -> RunRecord:
        pid = os.getpid()
        return cls(pid, psutil.Process(pid).create_time(), api_url, node_port, role)

    def alive(self) -> bool:
        with contextlib.suppress(psutil.Error):
            return abs(psutil.Process(self.pid).create_time() - self.create_time_s) < _CLOCK_SLACK_S
        return False


class StateFolder:
    """A node's folder. Reading gives None where there is no file; a broken one raises StateFolderError and stays."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def credentials(self) -> Credentials | None:
        credentials = self._read_json(CREDENTIALS_FILE, Credentials)
        try:
            if credentials is not None:
                credentials.check()
        except TrustError as error:
            raise self._broken(CREDENTIALS_FILE, str(error)) from error
        return credentials

    def save_credentials(self, credentials: Credentials) -> None:
        self._write(CREDENTIALS_FILE, _json(asdict(credentials)))

    def authority(self) -> ClusterAuthority | None:
        pem = self._read(AUTHORITY_FILE)
        try:
            return None if pem is None else ClusterAuthority.load(pem)
        except TrustError as error:
            raise self._broken(AUTHORITY_FILE, str(error)) from error

    def save_authority(self, authority: ClusterAuthority) -> None:
        self._write(AUTHORITY_FILE, authority.dump())

    def head_addresses(self) -> tuple[Address, ...]:
        """Where the head was last reached, best first; empty when that is not known. To be dialled, not trusted."""
        return self._read_json(HEAD_FILE, tuple[Address, ...]) or ()

    def save_head_addresses(self, addresses: Sequence[Address]) -> None:
        self._write(HEAD_FILE, _json(list(addresses)))

    def run(self) -> RunRecord | None:
        """What was last written, whether or not that process still lives."""
        return self._read_json(RUN_FILE, RunRecord)

    def running(self) -> RunRecord | None:
        """The record of a process that lives now."""
        record = self.run()
        return record if record is not None and record.alive() else None

    def save_run(self, record: RunRecord) -> None:
        self._write(RUN_FILE, _json(asdict(record)))

    def clear_run(self, record: RunRecord) -> None:
        """Remove `record`, but not the record of a program that was started since."""
        with contextlib.suppress(OSError, StateFolderError):
            if self.run() == record:
                (self.path / RUN_FILE).unlink()

    def _read_json(self, name: str, kind: type[_T]) -> _T | None:
        text = self._read(name)
        try:
            return None if text is None else msgspec.json.decode(text, type=kind)
        except msgspec.MsgspecError as error:
            raise self._broken(name, str(error)) from error

    def _read(self, name: str) -> bytes | None:
        try:
            with (self.path / name).open("rb") as file:
                data = file.read(FILE_LIMIT_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateFolderError(f"{self.path / name} cannot be read: {error.strerror}.") from error
        if len(data) > FILE_LIMIT_BYTES:
            raise self._broken(name, "it is too long")
        return data

    def _write(self, name: str, data: bytes) -> None:
        try:
            self._make_private()
            _replace(self.path / name, data)
        except OSError as error:
            raise StateFolderError(f"{self.path / name} cannot be written: {error.strerror}.") from error

    def _make_private(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.name == "posix" and self.path.stat().st_mode & 0o077:
            self.path.chmod(0o700)

    def _broken(self, name: str, why: str) -> StateFolderError:
        return StateFolderError(f"{self.path / name} is broken ({why.rstrip('.')}); it was left as it is.")


def _json(data: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(data), indent=2)


def _replace(target: Path, data: bytes) -> None:
    """Raises OSError, and then leaves `target` as it was."""
    handle, new = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}-")  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(new).replace(target)
    except OSError:
        Path(new).unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the renaming itself durable, where a folder can be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
