"""A disk that is full in the middle of a write leaves the old file whole: really full, in a process of its own."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from transport.types import Address
from vramancer_cli.runtime.registrar import Registrar
from vramancer_cli.runtime.state_folder import StateFolder

OLD = (Address("192.0.2.7", 5001),)
WRITES = """
import signal, sys
from pathlib import Path
from transport.errors import TransportError
from transport.types import Address
from vramancer_cli.runtime.registrar import Registrar
from vramancer_cli.runtime.state_folder import StateFolder
from vramancer_cli.runtime.whole_file import StateFolderError
if int(sys.argv[2]):
    import resource
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
folder = StateFolder(Path(sys.argv[1]))
registrar = Registrar(folder)
def attempt(write):
    try:
        write()
    except (StateFolderError, TransportError) as error:
        print("refused:", error)
many = [Address(f"192.0.2.{n}", 5001) for n in range(200)]
attempt(lambda: folder.save_head_addresses(many))
attempt(lambda: registrar.remove("b" * 32))
attempt(lambda: registrar.admit("c" * 32, "code in slot 4" * 40, 1.0))
"""


def prepared(path: Path) -> StateFolder:
    folder = StateFolder(path)
    folder.save_head_addresses(OLD)
    Registrar(folder).remove("a" * 32)
    return folder


def check_nothing_was_lost(folder: StateFolder, limit_bytes: int) -> None:
    before = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    ran = subprocess.run(
        [sys.executable, "-c", WRITES, str(folder.path), str(limit_bytes)], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("refused:") == 3, ran.stdout
    assert {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()} == before
    assert folder.head_addresses() == OLD
    assert Registrar(folder).removed == {"a" * 32}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path: Path) -> None:
    check_nothing_was_lost(prepared(tmp_path / "state"), 16)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB, where mounting one is allowed (root on Linux)."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux":
        pytest.skip("tmpfs is Linux's")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, b"size=64k"):
        pytest.skip(f"mounting is not allowed here ({os.strerror(ctypes.get_errno())})")
    try:
        yield place
    finally:
        libc.umount(str(place).encode())


def test_a_full_disk_leaves_the_old_files_and_works_again_once_there_is_room(small_disk: Path) -> None:
    folder = prepared(small_disk / "state")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError as error:
            assert "No space left" in str(error)
    check_nothing_was_lost(folder, 0)
    filler.unlink()
    folder.save_head_addresses([Address("192.0.2.9", 5001)])
    Registrar(folder).remove("b" * 32)
    assert Registrar(folder).removed == {"a" * 32, "b" * 32}
