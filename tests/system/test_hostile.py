"""Real nodes between strangers: garbage on both ports, guessed codes, texts without end, folders that lie."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from openai import BadRequestError, OpenAI

from build_scripts.local_cluster import LocalCluster, local_cluster

OPENINGS = (b"", b"\x16\x03\x01", b"\x16\x03\x01\xff\xff", b"VTPDATA\n", b"VTPD", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
FREE_PORTS = ("--port", "0", "--node-port", "0")
TRIES = 5


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One head that serves the built-in model by itself."""
    with local_cluster(tmp_path_factory.mktemp("alone")) as cluster:
        cluster.start_head()
        cluster.wait_ready(1)
        yield cluster
        assert "Traceback" not in cluster.head.output


def own_bytes(cluster: LocalCluster) -> int:
    return int(psutil.Process(cluster.head.process.pid).memory_full_info().uss)


def api_port(cluster: LocalCluster) -> int:
    return int(cluster.head.api_url.rsplit(":", 1)[1])


def ask(cluster: LocalCluster, prompt: str) -> None:
    with OpenAI(base_url=f"{cluster.head.api_url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        client.completions.create(model="vramancer-guide", prompt=prompt, max_tokens=2)


def throw(port: int, data: bytes) -> None:
    """Send and hang up; a reset is an answer too."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as stranger:
            stranger.sendall(data)
    except ConnectionError:
        pass


def answered(port: int, data: bytes) -> bytes:
    """What comes back until the other side hangs up, which it must within 5 s."""
    with socket.create_connection(("127.0.0.1", port), 5) as stranger:
        stranger.settimeout(5)
        got = b""
        try:
            stranger.sendall(data)
            while more := stranger.recv(65536):
                got += more
        except ConnectionError:
            pass
        return got


def test_garbage_on_the_node_port_is_cut_off_and_takes_no_memory(alone: LocalCluster) -> None:
    port, rng = alone.head.node_port, random.Random(5)
    assert answered(port, OPENINGS[-1]).startswith(b"HTTP/1.1 400 ")

    def bytes_after_garbage() -> int:
        garbage = [rng.choice(OPENINGS) + rng.randbytes(rng.randrange(3000)) for _ in range(400)]
        with ThreadPoolExecutor(4) as strangers:
            list(strangers.map(lambda data: throw(port, data), garbage))
        ask(alone, "Hello")
        return own_bytes(alone)

    # Threads that come once and the C library's arenas add to some rounds; what is kept of callers adds to every one.
    after = [bytes_after_garbage() for _ in range(7)]
    assert min(later - before for before, later in pairwise(after)) < 256 * 1024


def test_garbage_on_the_api_port_gets_an_error_object(alone: LocalCluster) -> None:
    rng = random.Random(6)
    head, _, body = answered(api_port(alone), b"\x17" + rng.randbytes(4000)).partition(b"\r\n\r\n")
    assert b" 400 " in head
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    in_tls = answered(api_port(alone), b"\x16\x03\x01\x02\x00" + rng.randbytes(512))
    assert in_tls[:1] in (b"", b"\x15"), "a TLS alert, or nothing: HTTP could not be read there"


def test_callers_who_say_nothing_do_not_stop_the_answers(alone: LocalCluster) -> None:
    silent = [socket.create_connection(("127.0.0.1", alone.head.node_port), 5) for _ in range(32)]
    try:
        started = time.monotonic()
        ask(alone, "Hello")
        assert time.monotonic() - started < 3
    finally:
        for caller in silent:
            caller.close()


def test_texts_that_cannot_fit_are_refused_before_they_cost_memory(alone: LocalCluster) -> None:
    ask(alone, "Hello")
    before = own_bytes(alone)
    for letter in "abcdef":
        with pytest.raises(BadRequestError, match="context holds") as caught:
            ask(alone, letter * 3_000_000)
        assert caught.value.code == "context_length_exceeded"
    assert own_bytes(alone) - before < 64 << 20


def test_after_five_guesses_the_right_code_is_worth_nothing(alone: LocalCluster) -> None:
    code, _ = alone.client.invite()
    slot = code.partition("-")[0]
    for guess in [f"{slot}-otter-maple-drum"] * TRIES + [code]:
        ran = verb(alone.folder / "stranger", "join", f"127.0.0.1:{alone.head.node_port}", "--code", guess, *FREE_PORTS)
        assert ran.returncode == 4
        assert one_error(ran.stderr).startswith("error: The master did not accept the pairing code")
    assert [node.name for node in alone.client.status().nodes] == ["head"]


def test_joining_at_the_pages_port_names_the_right_one(alone: LocalCluster) -> None:
    ran = verb(alone.folder / "stranger", "join", f"127.0.0.1:{api_port(alone)}", "--code", "1-otter-maple-drum")
    assert ran.returncode == 3
    assert "node port" in one_error(ran.stderr)


def verb(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VRM_")}
    command = [sys.executable, "-m", "vramancer_cli", *arguments, "--state-dir", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=kept, stdin=subprocess.DEVNULL)


def one_error(output: str) -> str:
    """The one error line, and no traceback beside it."""
    assert "Traceback" not in output
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    return line
