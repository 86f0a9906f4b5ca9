from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vramancer_cli.runtime.claim import FolderTakenError, claimed

HOLD = "import sys, pathlib; from vramancer_cli.runtime.claim import claimed\nwith claimed(pathlib.Path(sys.argv[1])):"


def test_a_folder_is_held_by_one_process_and_free_when_that_is_killed(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{HOLD} print('held', flush=True); input()", str(tmp_path / "new")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(FolderTakenError, match="new"), claimed(tmp_path / "new"):
            pass
        holder.kill()
        holder.wait(10)
    with claimed(tmp_path / "new"):
        pass


def test_it_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with claimed(tmp_path):
            pass
