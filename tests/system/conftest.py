"""Real processes for the system tests. Every cluster is torn down, whatever happens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from build_scripts.local_cluster import LocalCluster, local_cluster

THIRD = "16MiB"
"""A --memory that holds about a third of the built-in model."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    with local_cluster(tmp_path, memory=THIRD) as running:
        yield running


@pytest.fixture(scope="session")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Head and two workers, ready; shared by all tests that do not hurt them."""
    with local_cluster(tmp_path_factory.mktemp("cluster"), memory=THIRD) as running:
        running.start_head()
        running.add_worker()
        running.add_worker()
        running.wait_ready(3)
        yield running


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
