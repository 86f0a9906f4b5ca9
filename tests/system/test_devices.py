"""Nodes that lend two devices, as real processes: a head and a worker, each with two stages in one process.

Two CPU devices, each with a thread, a limit and a stage of its own; what GPUs do between them is not tried here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest
from openai import APIError, OpenAI
from transformers import AutoTokenizer

from build_scripts.local_cluster import LocalCluster, local_cluster
from tests.system.test_parity import references, served
from vramancer_cli.cluster.status import ClusterStatus
from vramancer_cli.models.catalog import BUILTIN_NAME, builtin_folder

TWO = ("--device", "cpu", "--device", "cpu", "--memory", "15MiB", "--memory", "14MiB")
"""Limits that hold about a quarter of the built-in model each."""
LONG = "Count with me: one, two, three, four, five, six, seven"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with local_cluster(tmp_path_factory.mktemp("devices")) as running:
        running.start_head("--device", "cpu,cpu", "--memory", "15MiB")
        running.add_worker(*TWO)
        running.wait_ready(2)
        yield running


def test_a_node_of_two_devices_holds_two_stages(cluster: LocalCluster) -> None:
    head, worker = cluster.client.status(fresh=True).nodes
    assert [device.memory_limit_bytes for device in head.devices] == [15 << 20, 15 << 20]
    assert [device.memory_limit_bytes for device in worker.devices] == [15 << 20, 14 << 20]
    assert "On cpu:1: layers" in head.why
    for node in (head, worker):
        assert [device.device for device in node.devices] == ["cpu", "cpu:1"]
        first, second = (device.layers for device in node.devices)
        assert first is not None
        assert second is not None
        assert node.layers == (first[0], second[1])
        assert first[1] == second[0]
        assert all(0 < device.memory_used_bytes <= device.memory_limit_bytes for device in node.devices)


def test_its_text_is_that_of_the_unsplit_model_and_every_device_computed_its_share(cluster: LocalCluster) -> None:
    """Grade: identical (float32, margin asserted)."""
    tokenizer = AutoTokenizer.from_pretrained(builtin_folder())
    topics = ["--memory", "--context", "a worker", "the head", "Windows", "a code", "the page", "chat"]
    questions = [f"What is {topic}?" for topic in topics]
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], add_generation_prompt=True, return_dict=False)
        for q in questions
    ]
    expected, clear = references(builtin_folder(), prompts)
    assert all(clear)
    before = computed(cluster.client.status(fresh=True))
    assert served(cluster, BUILTIN_NAME, prompts, 1.0) == expected
    status = cluster.client.status(fresh=True)
    done = {place: count - before[place] for place, count in computed(status).items()}
    layers = {
        (node.name, device.device): device.layers[1] - device.layers[0]
        for node in status.nodes
        for device in node.devices
        if device.layers
    }
    assert len(layers) == 4
    assert len({done[place] / count for place, count in layers.items()}) == 1, "every device saw every token"


def computed(status: ClusterStatus) -> dict[tuple[str, str], int]:
    return {(node.name, device.device): device.layer_tokens for node in status.nodes for device in node.devices}


@pytest.mark.faults
def test_killed_it_loses_both_stages_at_once_and_comes_back(cluster: LocalCluster) -> None:
    client = OpenAI(base_url=f"{cluster.head.api_url}/v1", api_key="none", max_retries=0, timeout=60)
    stream = iter(client.completions.create(model=BUILTIN_NAME, prompt=LONG, seed=1, max_tokens=1500, stream=True))
    next(stream)
    cluster.workers[0].kill()
    with pytest.raises(APIError):
        for _ in stream:
            pass
    status = wait_until(cluster, lambda now: now.nodes[-1].state == "lost")
    assert (status.state, status.nodes[-1].layers) == ("waiting", None)
    assert [device.layers for device in status.nodes[-1].devices] == [None, None]
    arguments = ["join", f"127.0.0.1:{cluster.head.node_port}", "--port", "0", "--node-port", "0", *TWO]
    cluster.workers[0] = cluster.workers[0].launch(cluster.workers[0].folder, [*arguments, "--name", "worker-1"])
    cluster.wait_ready(2)
    assert client.completions.create(model=BUILTIN_NAME, prompt=LONG, max_tokens=5).choices[0].text


def wait_until(cluster: LocalCluster, holds: Callable[[ClusterStatus], bool]) -> ClusterStatus:
    until = time.monotonic() + 20.0
    while True:
        status = cluster.client.status(fresh=True)
        if holds(status):
            return status
        assert time.monotonic() < until, json.dumps(status.to_json())
        time.sleep(0.1)
