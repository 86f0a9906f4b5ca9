"""What a node keeps on disk between starts: who it is, the cluster's authority (on the head), where its head was.

What runs now stands in `run_file`, and what is no secret of this in `trust_records`: the small verbs can read those
without what this file imports.
Never sockets, loops or torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from transport.errors import TrustError
from transport.identity import ClusterAuthority, Credentials
from transport.types import Address
from vramancer_cli.runtime import trust_records, whole_file
from vramancer_cli.runtime.trust_records import CREDENTIALS_FILE, HEAD_FILE, OWN_REMOVAL_FILE, OwnRemoval
from vramancer_cli.runtime.whole_file import StateFolderError

AUTHORITY_FILE: Final = "authority.pem"

_T = TypeVar("_T")


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

    def forget_membership(self, removal: OwnRemoval) -> None:
        """This node was removed: its key is of no use any more. What is written tells the next start why."""
        self.write_record(OWN_REMOVAL_FILE, removal)
        (self.path / CREDENTIALS_FILE).unlink(missing_ok=True)
        (self.path / HEAD_FILE).unlink(missing_ok=True)

    def own_removal(self) -> OwnRemoval | None:
        """Of a node that has not joined again since."""
        joined_since = (self.path / CREDENTIALS_FILE).exists()
        return None if joined_since else trust_records.read_own_removal(self.path)

    def write_record(self, name: str, value: object) -> None:
        """Raises StateFolderError, the old file intact; also for a value that could not be read back."""
        data = msgspec.json.encode(value)
        if len(data) > whole_file.FILE_LIMIT_BYTES:
            raise StateFolderError(f"{self.path / name} would become too long.")
        self._write(name, data)

    def _read_json(self, name: str, kind: type[_T]) -> _T | None:
        text = self._read(name)
        try:
            return None if text is None else msgspec.json.decode(text, type=kind)
        except msgspec.MsgspecError as error:
            raise self._broken(name, str(error)) from error

    def _read(self, name: str) -> bytes | None:
        return whole_file.read(self.path / name)

    def _write(self, name: str, data: bytes) -> None:
        whole_file.write(self.path / name, data)

    def _broken(self, name: str, why: str) -> StateFolderError:
        return whole_file.broken(self.path / name, why)


def _json(data: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(data), indent=2)
