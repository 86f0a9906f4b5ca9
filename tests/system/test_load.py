"""More than a node has places for: streams, idle connections, clients that read slowly, dribble, or leave.

After each of them, within 10 s, threads and descriptors are where they were, and memory is what the plan says.
`VRM_LOAD_S`: how long the streams go on.
"""

from __future__ import annotations

import http.client
import json
import os
import resource
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import psutil
import pytest

from build_scripts.local_cluster import LocalCluster, local_cluster
from tests.helpers.streams import MODEL, Asked, Question, ask

MEMORY = "24MiB"
"""Two such nodes hold the built-in model, one does not."""
QUESTION = Question("Tell me about layers", 30)
LOAD_S = float(os.environ.get("VRM_LOAD_S", "20"))
SETTLE_S = 10.0
THREADS = 2
"""Handshake threads come when they are needed, and stay."""
KEPT_BYTES = 16 << 20
"""What the C library may keep of threads and buffers that were."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head and a worker that both hold layers, warm."""
    with local_cluster(tmp_path_factory.mktemp("load"), memory=MEMORY) as cluster:
        cluster.start_head()
        cluster.add_worker()
        cluster.wait_ready(2)
        with ThreadPoolExecutor(32) as clients:
            list(clients.map(lambda _: ask(cluster.head.api_url, QUESTION), range(64)))
        yield cluster
        assert all("Traceback" not in node.output for node in cluster.nodes)


@pytest.fixture
def loaded(pair: LocalCluster) -> Iterator[LocalCluster]:
    """For a test that loads it: afterwards all is as before."""
    before = figures(pair)
    planned = [node.memory_used_bytes for node in pair.client.status(fresh=True).nodes]
    yield pair
    until = time.monotonic() + SETTLE_S
    while (why := unsettled(pair, before)) and time.monotonic() < until:
        time.sleep(0.2)
    assert not why
    assert [node.memory_used_bytes for node in pair.client.status(fresh=True).nodes] == planned
    assert ask(pair.head.api_url, QUESTION)


def figures(cluster: LocalCluster) -> list[tuple[int, int, int]]:
    processes = [psutil.Process(node.process.pid) for node in cluster.nodes]
    return [(one.num_threads(), one.num_fds(), one.memory_full_info().uss) for one in processes]


def unsettled(cluster: LocalCluster, before: list[tuple[int, int, int]]) -> str:
    status = cluster.client.status()
    if status.running or status.waiting:
        return f"{status.running} running, {status.waiting} waiting"
    for node, then, now in zip(cluster.nodes, before, figures(cluster), strict=True):
        if now[0] > then[0] + THREADS or now[1] > then[1] + 1 or now[2] > 1.05 * then[2] + KEPT_BYTES:
            return f"{node.folder.name}: (threads, descriptors, bytes) {then} became {now}"
    return ""


def api(cluster: LocalCluster) -> tuple[str, int]:
    return "127.0.0.1", int(cluster.head.api_url.rsplit(":", 1)[1])


def request(body: dict[str, object]) -> bytes:
    data = json.dumps({"model": MODEL, "prompt": "Tell me", **body}).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(data), data)


@pytest.mark.faults
def test_sixty_four_streams_say_what_one_alone_says(loaded: LocalCluster) -> None:
    questions = [Question(f"Tell me about layers {number}", 30) for number in range(8)]
    alone = {question: ask(loaded.head.api_url, question) for question in questions}
    until = time.monotonic() + LOAD_S

    def stream(number: int) -> int:
        count = 0
        while time.monotonic() < until:
            question = questions[(number + count) % len(questions)]
            assert ask(loaded.head.api_url, question) == alone[question]
            count += 1
        return count

    with ThreadPoolExecutor(64) as clients:
        counts = list(clients.map(stream, range(64)))
    assert min(counts) >= 1, "somebody was never served"


@pytest.mark.faults
@pytest.mark.parametrize("port", ["api", "node"])
@pytest.mark.parametrize("first", [b"", b"POST /v1/comp"], ids=["silent", "half a head"])
def test_ten_thousand_idle_connections_keep_nobody_out(loaded: LocalCluster, port: str, first: bytes) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert hard >= 11_000, "this machine lets nobody open so many"
    where = api(loaded) if port == "api" else ("127.0.0.1", loaded.head.node_port)
    running = Asked(loaded.head.api_url, Question("Tell me about layers", 200))
    running.wait_for_pieces(2)
    with ExitStack() as crowd:
        for number in range(10_000):
            with suppress(OSError):
                client = crowd.enter_context(socket.create_connection(where, 5))
                if first:
                    client.sendall(first)
            if number % 2000 == 1000:
                assert ask(loaded.head.api_url, QUESTION), "nobody gets in any more"
        assert ask(loaded.head.api_url, QUESTION)
        assert running.join(120).error is None, "who was in was thrown out"


@pytest.mark.faults
def test_clients_that_do_not_read_are_dropped_and_hold_up_nobody(loaded: LocalCluster) -> None:
    """Their answers are larger than all buffers between: 4 choices, each token with its five likeliest."""
    large = request({"stream": True, "n": 4, "max_tokens": 1500, "min_tokens": 1500, "logprobs": 5})
    with ExitStack() as crowd:
        for _ in range(3):
            client = crowd.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(api(loaded))
            client.sendall(large)
        while not loaded.client.status().running:
            time.sleep(0.05)
        assert ask(loaded.head.api_url, QUESTION)
        until = time.monotonic() + 120
        while loaded.client.status().running:
            assert time.monotonic() < until, "they are waited for"
            time.sleep(0.5)


@pytest.mark.faults
@pytest.mark.parametrize("stream", [True, False])
def test_what_nobody_waits_for_any_more_stops_on_every_node(loaded: LocalCluster, stream: bool) -> None:
    for _ in range(8):
        with socket.create_connection(api(loaded), 5) as client:
            client.sendall(request({"stream": stream, "max_tokens": 1500, "min_tokens": 1500}))
            time.sleep(0.1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until = time.monotonic() + 5
    while loaded.client.status().running:
        assert time.monotonic() < until, "the work goes on"
        time.sleep(0.02)
    time.sleep(0.5)  # steps on their way come back
    done = [node.layer_tokens for node in loaded.client.status(fresh=True).nodes]
    time.sleep(1)
    assert [node.layer_tokens for node in loaded.client.status(fresh=True).nodes] == done


@pytest.mark.faults
def test_more_than_the_queue_holds_is_refused_with_a_time(loaded: LocalCluster) -> None:
    def post(_: int) -> tuple[int, str | None]:
        connection = http.client.HTTPConnection(*api(loaded), timeout=120)
        try:
            body = json.dumps({"model": MODEL, "prompt": "Tell me", "max_tokens": 20, "min_tokens": 20})
            connection.request("POST", "/v1/completions", body)
            response = connection.getresponse()
            response.read()
            return response.status, response.headers["Retry-After"]
        finally:
            connection.close()

    with ThreadPoolExecutor(190) as clients:
        replies = Counter(clients.map(post, range(190)))
    assert {status for status, _ in replies} == {200, 429}
    assert sum(count for (status, _), count in replies.items() if status == 200) >= 144
    assert all(int(after or 0) > 0 for status, after in replies if status == 429)
