"""Real processes for the system tests. Every cluster is torn down, whatever happens."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from build_scripts.local_cluster import LocalCluster, NodeProcess, local_cluster

THIRD = "16MiB"
"""A --memory that holds about a third of the built-in model."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with local_cluster(tmp_path, memory=THIRD) as running:
        yield running


@pytest.fixture(scope="session")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Head and two workers, ready; shared by all tests that do not hurt them."""
    with three_running(tmp_path_factory.mktemp("cluster"), THIRD) as running:
        yield running


@contextmanager
def three_running(folder: Path, memory: str) -> Generator[LocalCluster]:
    """Head and two workers, ready."""
    with local_cluster(folder, memory=memory) as running:
        running.start_head()
        running.add_worker()
        running.add_worker()
        running.wait_ready(3)
        yield running


@contextmanager
def made_whole(cluster: LocalCluster) -> Generator[LocalCluster]:
    """For a test that hurts one of three: begun when all are there, and no node may have shown a fault of ours."""
    cluster.wait_ready(3)
    yield cluster
    for node in cluster.nodes:
        assert "Traceback" not in node.output
        assert "never retrieved" not in node.output


def again(cluster: LocalCluster, node: NodeProcess) -> NodeProcess:
    """What was there before, out of its own folder: no code, no address."""
    arguments = ["start", "--port", "0", "--node-port", "0", "--memory", cluster.memory, "--name", node.folder.name]
    return NodeProcess.launch(node.folder, arguments)


def children_of(pid: int) -> list[int]:
    """Processes that the given one started and that still live."""
    alive: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            if parent == pid:
                alive.append(int(entry.name))
    return alive


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
