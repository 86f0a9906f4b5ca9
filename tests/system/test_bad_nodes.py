"""A worker of a real cluster that joined properly, and then lies on its links, while answers run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from build_scripts.local_cluster import LocalCluster
from tests.helpers.hostile_node import HostileNode, in_slices, is_cut, lies
from tests.helpers.streams import Asked, Question, ask
from tests.system.conftest import made_whole, three_running
from vramancer_cli.cluster.status import NodeStatus
from vramancer_cli.telemetry.security import Kind
from vramancer_cli.telemetry.security_log import read

T = TypeVar("T")
MEMORY = "32MiB"
"""Two such nodes hold the built-in model; three share it."""
QUESTION = Question("Tell me about layers", 90)
QUICK = "a result before a request"


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with three_running(tmp_path_factory.mktemp("bad"), MEMORY) as cluster:
        yield cluster


@pytest.fixture
def whole(spare: LocalCluster) -> Iterator[LocalCluster]:
    with made_whole(spare) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(spare: LocalCluster) -> str:
    return ask(spare.head.api_url, QUESTION)


def last_worker(cluster: LocalCluster) -> NodeStatus:
    """The one whose layers are the last: its results go to the head."""
    return max((node for node in cluster.client.status().nodes if node.layers), key=lambda node: node.layers[1])


def seen(cluster: LocalCluster, node: str) -> NodeStatus:
    return next(one for one in cluster.client.status().nodes if one.id == node)


def folder_of(cluster: LocalCluster, node: str) -> Path:
    folders = (worker.folder for worker in cluster.workers)
    return next(folder for folder in folders if (folder / "credentials.json").read_text().count(node))


def replaced(cluster: LocalCluster, node: str) -> None:
    """End the liar for good, and have a machine of another identity in its place."""
    index = next(i for i, worker in enumerate(cluster.workers) if worker.folder == folder_of(cluster, node))
    cluster.workers[index].kill()
    cluster.client.remove_node(node)
    newcomers = itertools.count(len(list(cluster.folder.iterdir())))
    cluster.workers[index] = cluster.new_worker(f"worker-{next(newcomers)}")


@pytest.mark.parametrize(
    "lie", [pytest.param(name, marks=[] if name == QUICK else [pytest.mark.faults]) for name in lies()]
)
def test_who_lies_on_a_data_link_is_quarantined_and_the_answers_go_on(
    whole: LocalCluster, undisturbed: str, lie: str
) -> None:
    status = whole.client.status()
    liar = last_worker(whole)
    running = Asked(whole.head.api_url, QUESTION)
    running.wait_for_pieces(6)
    with HostileNode(folder_of(whole, liar.id)) as face:
        link = face.data(whole.head.node_port, status.nodes[0].id)
        for piece in in_slices(lies()[lie](status.epoch, 3)):
            link.sendall(piece)
        assert is_cut(link)
    now = quarantined(whole, liar.id)
    assert now.why.startswith("quarantined for another ")
    assert "data link: " in now.why
    running.join()
    assert (running.error, running.text) == (None, undisturbed)
    assert seen(whole, liar.id).layers is None
    assert Kind.QUARANTINED in [event.kind for event in read(whole.head.folder, 1000)]
    replaced(whole, liar.id)


def quarantined(cluster: LocalCluster, node: str) -> NodeStatus:
    return wait_for(lambda: now if (now := seen(cluster, node)).state == "quarantined" else None, deadline_s=5)


def test_lies_without_end_take_no_memory_and_no_place(whole: LocalCluster, undisturbed: str) -> None:
    """Of a node that holds nothing, so that nothing is loaded meanwhile."""
    head, status = psutil.Process(whole.head.process.pid), whole.client.status()
    small = replace(whole, folder=whole.folder / "small", memory="1MiB", workers=[])
    small.head = whole.head
    liar = small.add_worker()
    try:
        liar.wait_live()
        node = wait_for(
            lambda: next((one.id for one in whole.client.status().nodes if one.memory_limit_bytes == 1 << 20), None)
        )

        def used_after_lies() -> int:
            with HostileNode(liar.folder) as face:
                for lie in 4 * tuple(lies().values()):
                    with suppress(OSError):  # turned away already
                        link = face.data(whole.head.node_port, status.nodes[0].id)
                        link.sendall(lie(status.epoch, 3))
                        assert is_cut(link)
            assert ask(whole.head.api_url, QUESTION) == undisturbed
            return head.memory_full_info().uss

        used = [used_after_lies() for _ in range(6)]
        assert used[-1] - used[2] < 1 << 20
        assert wait_for(lambda: seen(whole, node).state == "quarantined")
        assert whole.client.status().epoch == status.epoch
        assert head.num_threads() < 100
    finally:
        liar.kill()


def wait_for(look: Callable[[], T | None], deadline_s: float = 20.0) -> T:
    until = time.monotonic() + deadline_s
    while not (found := look()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return found
