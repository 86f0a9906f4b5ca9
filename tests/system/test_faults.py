"""Real nodes that are killed, stopped, silenced and started again, while a crowd of clients asks.

None of the three can be spared: what goes on where one can is in test_survival.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from openai import APIError, OpenAI

from build_scripts.local_cluster import LocalCluster, NodeProcess
from tests.system.conftest import THIRD, again, made_whole, three_running
from vramancer_cli.cluster.reconcile import RETURN_S

CLIENTS = 6
LONG_PROMPT = "word thing " * 480
"""Several steps of prefill for the built-in model, and yet within its context."""


@pytest.fixture(scope="module")
def hurt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head at a port of its own and two workers; every test hurts it, and the next one begins when it is whole."""
    with three_running(tmp_path_factory.mktemp("hurt"), THIRD) as cluster:
        yield cluster


@pytest.fixture
def whole(hurt: LocalCluster) -> Iterator[LocalCluster]:
    with made_whole(hurt) as cluster:
        yield cluster


class Crowd:
    """Clients that ask again and again until they are refused or cut; `ends` has when, and the error's code."""

    def __init__(self, cluster: LocalCluster, prompt: str = "Tell me") -> None:
        self._url = f"{cluster.head.api_url}/v1"
        self.ends: list[tuple[float, str | None]] = []
        self._threads = [threading.Thread(target=self._ask, args=(f"{prompt} {n}",)) for n in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        _until(lambda: cluster.client.status().running, "the crowd is not served")

    def _ask(self, prompt: str) -> None:
        with OpenAI(base_url=self._url, api_key="none", max_retries=0, timeout=30) as client:
            try:
                while True:
                    for _ in client.completions.create(
                        model="vramancer-guide", prompt=prompt, temperature=1.0, max_tokens=300, stream=True
                    ):
                        pass
            except APIError as error:
                self.ends.append((time.monotonic(), error.code))

    def codes(self, deadline_s: float = 15.0) -> set[str | None]:
        """How the clients ended, which all of them must within the deadline."""
        until = time.monotonic() + deadline_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        assert len(self.ends) == CLIENTS, "a client still waits"
        return {code for _, code in self.ends}


def _answers(cluster: LocalCluster) -> bool:
    with OpenAI(base_url=f"{cluster.head.api_url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        return bool(client.completions.create(model="vramancer-guide", prompt="Hello", max_tokens=3).usage)


def _until(condition, otherwise: str, deadline_s: float = 10.0) -> None:
    until = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until, otherwise
        time.sleep(0.05)


@pytest.mark.parametrize("index", [pytest.param(0, marks=pytest.mark.faults), 1])
def test_a_worker_killed_while_prompts_are_read_ends_every_answer_and_comes_back(
    whole: LocalCluster, index: int
) -> None:
    crowd = Crowd(whole, LONG_PROMPT)
    whole.workers[index].kill()
    codes = crowd.codes()
    assert "node_lost" in codes
    assert codes <= {"node_lost", "not_ready"}
    status = whole.client.status()
    assert (status.running, status.waiting) == (0, 0)
    whole.workers[index] = again(whole, whole.workers[index])
    whole.wait_ready(3)
    assert _answers(whole)


def test_a_worker_killed_while_idle_is_missed_at_once(whole: LocalCluster) -> None:
    whole.workers[0].kill()
    _until(lambda: whole.client.status().state != "ready", "nobody noticed", deadline_s=2.0)
    assert "MiB" in whole.client.status().reason
    whole.workers[0] = again(whole, whole.workers[0])
    whole.wait_ready(3)
    assert _answers(whole)


@pytest.mark.faults
def test_a_silent_worker_is_given_up_in_seconds_and_comes_back_when_it_wakes(whole: LocalCluster) -> None:
    crowd = Crowd(whole)
    silent, stopped_at = whole.workers[1].process, time.monotonic()
    silent.send_signal(signal.SIGSTOP)
    try:
        assert "node_lost" in crowd.codes()
        first = min(at for at, code in crowd.ends if code == "node_lost")
        assert RETURN_S < first - stopped_at < 3 + RETURN_S + 1.5
    finally:
        silent.send_signal(signal.SIGCONT)
    whole.wait_ready(3, deadline_s=20)
    assert _answers(whole)


def test_a_worker_that_leaves_by_ctrl_c_says_so(whole: LocalCluster) -> None:
    crowd = Crowd(whole)
    left_at = time.monotonic()
    assert whole.workers[0].stop() in (0, 130)
    assert "node_lost" in crowd.codes()
    assert min(at for at, _ in crowd.ends) - left_at < RETURN_S + 2
    assert "nobody can take its layers" in whole.head.output
    assert "the worker left" in whole.head.output
    whole.workers[0] = again(whole, whole.workers[0])
    whole.wait_ready(3)


def test_a_killed_head_started_again_finds_its_workers(whole: LocalCluster) -> None:
    crowd, node_port = Crowd(whole), whole.head.node_port
    whole.head.kill()
    assert crowd.codes() == {None}
    whole.start_head("--node-port", str(node_port))
    whole.wait_ready(3, deadline_s=20)
    assert _answers(whole)


def test_a_copied_state_folder_is_refused_and_disturbs_nobody(whole: LocalCluster) -> None:
    """As when somebody copies a whole home folder to a second machine."""
    epoch, worker = whole.client.status().epoch, whole.workers[0]
    copied = shutil.ignore_patterns("run.json", "lock", "*.log")
    copy = Path(shutil.copytree(worker.folder, whole.folder / "copy", ignore=copied))
    arguments = ["start", "--port", "0", "--node-port", "0", "--memory", THIRD, "--name", "attic"]
    twin = NodeProcess.launch(copy, arguments)
    try:
        _until(lambda: twin.process.poll() is not None, "the twin runs", deadline_s=60)
        assert twin.process.returncode == 4
        named = rf"'attic' at \S+ has the same identity as '{worker.folder.name}' at \S+"
        assert re.search(named, twin.output)
        assert "A state folder was copied" in twin.output
        assert "Traceback" not in twin.output
    finally:
        twin.stop()
    status = whole.client.status()
    assert (status.state, status.epoch, len(status.nodes)) == ("ready", epoch, 3)
    assert _answers(whole)


def test_clients_that_vanish_leave_nothing_behind(whole: LocalCluster) -> None:
    """Threads of the handshake pool come once and stay, so only descriptors are counted."""
    head = psutil.Process(whole.head.process.pid)
    assert _answers(whole)
    handles = head.num_fds()
    for stream in (b"true", b"false"):
        for _ in range(20):
            _vanish(whole, stream)
    _until(lambda: not whole.client.status().running, "the work goes on")
    assert not whole.client.status().waiting
    _until(lambda: head.num_fds() <= handles, "descriptors are left open")
    assert _answers(whole)


def _vanish(cluster: LocalCluster, stream: bytes) -> None:
    """A whole request, and gone with a reset before the answer."""
    body = b'{"model":"vramancer-guide","prompt":"Tell me","max_tokens":1500,"stream":' + stream + b"}"
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    port = int(cluster.head.api_url.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(head.encode() + body)
        time.sleep(0.02)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_two_hundred_requests_take_no_memory(whole: LocalCluster) -> None:
    nodes = [psutil.Process(node.process.pid) for node in whole.nodes]
    with OpenAI(base_url=f"{whole.head.api_url}/v1", api_key="none", max_retries=0, timeout=30) as client:

        def ask(count: int) -> None:
            for number in range(count):
                client.completions.create(model="vramancer-guide", prompt=f"Hello {number}", max_tokens=4)

        ask(50)
        before = [node.memory_full_info().uss for node in nodes]
        ask(200)
        after = [node.memory_full_info().uss for node in nodes]
    assert all(late - early < 4 << 20 for early, late in zip(before, after, strict=True))


@pytest.mark.faults
def test_one_folder_started_twice_at_once_runs_one_node(tmp_path: Path) -> None:
    """Neither sees the other's run file, which is written once a node is up: the lock decides."""
    arguments = ["start", "--master", "--port", "0", "--node-port", "0"]
    both = [NodeProcess.launch(tmp_path, arguments) for _ in range(2)]
    try:
        _until(lambda: any(node.process.poll() is not None for node in both), "both run", deadline_s=60)
        ended, running = sorted(both, key=lambda node: node.process.poll() is None)
        assert ended.process.returncode == 1
        assert "--state-dir" in ended.output
        running.wait_live()
        os.kill(running.process.pid, 0)
    finally:
        codes = [node.stop() for node in both]
    assert sorted(codes) == [0, 1]
    assert "Traceback" not in both[0].output
