"""Several real processes on this machine: joining, answering, dying, stopping."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from openai import APIError, APIStatusError, OpenAI

from build_scripts.local_cluster import LocalCluster, NodeProcess
from tests.system.conftest import is_alive
from vramancer_cli.errors import VramancerError

QUESTION = [{"role": "user", "content": "What is VRAMancer?"}]
LONG = "Count with me: one, two, three, four, five, six, seven"


def openai_client(cluster: LocalCluster) -> OpenAI:
    return OpenAI(base_url=f"{cluster.head.api_url}/v1", api_key="none", max_retries=0, timeout=60)


def test_three_nodes_answer_and_each_counts_its_share(three_nodes: LocalCluster) -> None:
    before = {n.name: n.layer_tokens for n in three_nodes.client.status(fresh=True).nodes}
    answer = openai_client(three_nodes).chat.completions.create(
        model="vramancer-guide", messages=QUESTION, temperature=0, max_tokens=40
    )
    after = three_nodes.client.status(fresh=True)
    assert answer.choices[0].message.content
    done = {n.name: n.layer_tokens - before[n.name] for n in after.nodes}
    assert all(done.values())
    # The last token is sampled and never computed through the layers: the stop token, or the one at the limit.
    computed = answer.usage.total_tokens - (answer.choices[0].finish_reason == "length")
    assert sum(done.values()) == after.layer_count * computed


def test_streamed_and_whole_answers_are_the_same_text(three_nodes: LocalCluster) -> None:
    client = openai_client(three_nodes)
    ask = {"model": "vramancer-guide", "messages": QUESTION, "temperature": 0, "max_tokens": 40}
    whole = client.chat.completions.create(**ask).choices[0].message.content
    stream = client.chat.completions.create(**ask, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == whole


def test_many_at_once_answer_as_alone(three_nodes: LocalCluster) -> None:
    client = openai_client(three_nodes)

    def ask(text: str) -> str:
        answer = client.completions.create(model="vramancer-guide", prompt=text, temperature=0, max_tokens=24)
        return answer.choices[0].text

    texts = [f"{LONG} and {number}" for number in range(8)]
    alone = [ask(text) for text in texts]
    together: dict[str, str] = {}
    threads = [threading.Thread(target=lambda t=text: together.__setitem__(t, ask(t))) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[text] for text in texts] == alone


def test_status_as_a_person_and_as_a_program_sees_it(three_nodes: LocalCluster) -> None:
    url = three_nodes.head.api_url
    run = [sys.executable, "-m", "vramancer_cli", "status", "--url", url]
    board = subprocess.run(run, capture_output=True, text=True, timeout=30, check=True).stdout
    for name in ("head", "worker-1", "worker-2", "vramancer-guide"):
        assert name in board
    data = json.loads(subprocess.run([*run, "--json"], capture_output=True, text=True, timeout=30, check=True).stdout)
    assert [node["layers"] is not None for node in data["nodes"]] == [True] * 3


def test_a_worker_shows_the_board_too(three_nodes: LocalCluster) -> None:
    deadline = time.monotonic() + 10
    url = three_nodes.workers[0].api_url
    while True:
        try:
            with urllib.request.urlopen(f"{url}/api/pipeline/status", timeout=5) as reply:
                assert json.load(reply)["cluster"] == three_nodes.client.status().cluster
                return
        except urllib.error.HTTPError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_chat_from_the_terminal(three_nodes: LocalCluster) -> None:
    run = [sys.executable, "-m", "vramancer_cli", "chat", "--url", three_nodes.head.api_url, "--temperature", "0"]
    answer = subprocess.run([*run, "What is VRAMancer?"], capture_output=True, text=True, timeout=60, check=True)
    assert len(answer.stdout.split()) > 3


def test_joins_by_discovery(cluster: LocalCluster) -> None:
    """Each could hold the model alone, and is no faster than the other: the second stays in reserve, and says why."""
    cluster.memory = ""
    cluster.start_head()
    cluster.add_worker(discover=True)
    status = cluster.wait_ready(1)
    while not (
        worker := next((node for node in status.nodes if node.role == "worker" and node.state == "spare"), None)
    ):
        time.sleep(0.2)
        status = cluster.client.status()
    assert "in reserve: " in worker.why
    assert status.predicted_tokens_per_s is not None


@pytest.mark.faults
def test_a_worker_killed_in_the_middle_ends_the_answer_honestly_and_the_model_comes_back(cluster: LocalCluster) -> None:
    cluster.start_head()
    cluster.add_worker()
    victim = cluster.add_worker()
    cluster.wait_ready(3)
    client = openai_client(cluster)
    stream = client.completions.create(
        model="vramancer-guide", prompt=LONG, temperature=2.0, seed=1, max_tokens=1500, stream=True
    )
    pieces = iter(stream)
    for _ in range(5):
        next(pieces)
    victim.kill()
    with pytest.raises(APIError) as caught:
        for _ in pieces:
            pass
    assert caught.value.code == "node_lost"
    assert "worker-2" in str(caught.value)
    _wait_refused(client)
    # The same machine again: no code needed.
    arguments = ["join", f"127.0.0.1:{cluster.head.node_port}", "--port", "0", "--node-port", "0", "--memory", "16MiB"]
    cluster.workers[-1] = NodeProcess.launch(victim.folder, [*arguments, "--name", "worker-2"])
    cluster.wait_ready(3)
    assert client.completions.create(model="vramancer-guide", prompt=LONG, max_tokens=5).choices[0].text


def _wait_refused(client: OpenAI) -> None:
    """The next request gets 503 with the reason."""
    deadline = time.monotonic() + 10
    while True:
        try:
            client.completions.create(model="vramancer-guide", prompt=LONG, max_tokens=1)
        except APIStatusError as error:
            assert error.status_code == 503
            assert error.body["message"]
            if "MiB" in error.body["message"]:
                return
        assert time.monotonic() < deadline, "the head still answers"
        time.sleep(0.1)


def test_a_client_that_leaves_stops_the_work(three_nodes: LocalCluster) -> None:
    stream = openai_client(three_nodes).completions.create(
        model="vramancer-guide", prompt=LONG, temperature=2.0, max_tokens=1500, stream=True
    )
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 5
    while three_nodes.client.status().running:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("how", ["interrupt", pytest.param("stop", marks=pytest.mark.faults)])
def test_nothing_is_left_behind(cluster: LocalCluster, how: str) -> None:
    cluster.start_head()
    worker = cluster.add_worker()
    worker.wait_live()
    pids = [node.process.pid for node in cluster.nodes]
    for node in cluster.nodes:
        if how == "interrupt":
            assert node.stop() in (0, 130)
        else:
            _stop_verb(node.folder)
            assert node.process.wait(20) in (0, 130, -15)
        assert not (node.folder / "run.json").exists()
    assert not any(is_alive(pid) for pid in pids)


def _stop_verb(folder: Path) -> None:
    run = [sys.executable, "-m", "vramancer_cli", "stop", "--state-dir", str(folder)]
    subprocess.run(run, check=True, timeout=40)


def test_a_busy_port_says_who_holds_it(cluster: LocalCluster) -> None:
    cluster.start_head()
    port = cluster.head.api_url.rsplit(":", 1)[1]
    second = NodeProcess.launch(cluster.folder / "second", ["start", "--master", "--port", port, "--node-port", "0"])
    assert second.process.wait(60) == 1
    assert "--port" in second.output
    assert "Traceback" not in second.output


@pytest.mark.faults
def test_a_node_that_is_told_to_load_more_than_its_limit_never_serves(tmp_path: Path) -> None:
    with pytest.raises((VramancerError, TimeoutError)):
        cluster = LocalCluster(tmp_path, memory="2MiB")
        try:
            cluster.start_head()
            cluster.wait_ready(1, deadline_s=6)
        finally:
            cluster.stop()
