"""A real master whose state folder, with its logs, lies on a disk that becomes full: answers go on, old files stay.

The disk is a small tmpfs, which root may mount.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from build_scripts.local_cluster import LocalCluster, NodeProcess
from tests.helpers.streams import Question, ask
from vramancer_cli.errors import VramancerError

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs Linux, as root"),
]
QUESTION = Question("Tell me about layers", 20)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Half a MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], check=True, timeout=10)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


def fill(disk: Path) -> Path:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            pass
    return ballast


def kept(folder: Path) -> dict[str, bytes]:
    """What must survive: who this cluster is, whom it let in, and its keys."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".pem", ".json")}


def keys_add(folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vramancer_cli", "keys", "add", name, "--state-dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_full_disk_ends_no_answer_and_breaks_no_file(disk: Path) -> None:
    cluster = LocalCluster(disk)
    try:
        cluster.start_head()
        cluster.wait_ready(1)
        undisturbed = ask(cluster.head.api_url, QUESTION)
        cluster.client.make_token(reusable=False, hours=1)
        assert keys_add(cluster.head.folder, "before").returncode == 0
        before, identity = kept(cluster.head.folder), cluster.client.status().cluster_id
        ballast = fill(disk)
        with pytest.raises(VramancerError, match=r"cannot be written: No space left on device"):
            cluster.client.make_token(reusable=False, hours=1)
        refused = keys_add(cluster.head.folder, "after")
        assert refused.returncode == 1
        assert refused.stderr.count("error: ") == 1
        assert "No space left on device" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert kept(cluster.head.folder) == before
        assert ask(cluster.head.api_url, QUESTION) == undisturbed
        cluster.head.stop()
        ballast.unlink()
        assert "Traceback" not in cluster.head.output
        cluster.start_head()
        cluster.wait_ready(1)
        assert cluster.client.status().cluster_id == identity
        cluster.client.make_token(reusable=False, hours=1)
    finally:
        cluster.stop()


def test_a_start_on_a_full_disk_is_one_sentence(disk: Path, tmp_path: Path) -> None:
    folder = disk / "head"
    folder.mkdir()
    (folder / "output.log").symlink_to(tmp_path / "output.log")
    fill(disk)
    node = NodeProcess.launch(folder, ["start", "--master", "--port", "0", "--node-port", "0"])
    try:
        assert node.process.wait(60) == 1
    finally:
        node.stop()
    assert "No space left on device" in node.output
    assert node.output.count("error: ") == 1
    assert "Traceback" not in node.output
