from __future__ import annotations

import dataclasses
import os
import stat
import time
from pathlib import Path

import pytest

from transport import identity
from transport.identity import ClusterAuthority
from transport.types import Address
from vramancer_cli.runtime import state_folder
from vramancer_cli.runtime.state_folder import StateFolder
from vramancer_cli.runtime.whole_file import StateFolderError

AUTHORITY = ClusterAuthority.create("home", time.time())
HEAD = AUTHORITY.enrol_head("tower", identity.make_key(), time.time())


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path / "deep" / "state")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_an_empty_folder_holds_nothing_and_is_not_made_by_reading(folder: StateFolder) -> None:
    assert (folder.credentials(), folder.authority(), folder.head_addresses()) == (None, None, ())
    assert not folder.path.exists()


def test_everything_comes_back_as_it_was(folder: StateFolder) -> None:
    folder.save_credentials(HEAD)
    folder.save_authority(AUTHORITY)
    folder.save_head_addresses([Address("fd00::2", 5001), Address("box", 5001)])
    assert (folder.credentials(), folder.authority()) == (HEAD, AUTHORITY)
    assert folder.head_addresses() == (Address("fd00::2", 5001), Address("box", 5001))


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_only_the_owner_may_read(folder: StateFolder) -> None:
    folder.path.mkdir(parents=True, mode=0o755)
    folder.save_credentials(HEAD)
    folder.save_authority(AUTHORITY)
    assert mode(folder.path) == 0o700
    assert {mode(path) for path in folder.path.iterdir()} == {0o600}


BROKEN = {
    "empty": b"",
    "half": b'{"node_id": "',
    "another shape": b"[1, 2]",
    "not text": b"\xff\xfe\x00",
    "too long": b" " * 70_000,
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", ["credentials.json", "authority.pem", "head.json"])
def test_a_broken_file_is_named_and_left_alone(folder: StateFolder, name: str, data: bytes) -> None:
    folder.path.mkdir(parents=True)
    (folder.path / name).write_bytes(data)
    read = {
        "credentials.json": folder.credentials,
        "authority.pem": folder.authority,
        "head.json": folder.head_addresses,
    }[name]
    with pytest.raises(StateFolderError, match=name) as raised:
        read()
    assert "--state-dir" in raised.value.hint
    assert (folder.path / name).read_bytes() == data


def test_credentials_whose_key_is_another_nodes_are_broken(folder: StateFolder) -> None:
    folder.save_credentials(dataclasses.replace(HEAD, key_pem=identity.make_key()))
    with pytest.raises(StateFolderError, match="key"):
        folder.credentials()


def test_a_write_that_fails_half_way_leaves_the_old_file(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.save_credentials(HEAD)
    other = AUTHORITY.enrol_head("other", identity.make_key(), time.time())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateFolderError, match="No space left"):
        folder.save_credentials(other)
    assert folder.credentials() == HEAD
    assert [path.name for path in folder.path.iterdir()] == [state_folder.CREDENTIALS_FILE]


def test_a_folder_that_cannot_be_made_is_a_named_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateFolderError):
        StateFolder(tmp_path / "file" / "state").save_credentials(HEAD)
    with pytest.raises(StateFolderError):
        StateFolder(tmp_path / "file").credentials()
