"""Real processes that die, are stopped or are drained in the middle of answers, which go on with the same text.

Grade: identical. Everything is float32 on CPUs, and the greedy reference asserts its margin at every token.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from openai import OpenAI

from build_scripts.local_cluster import LocalCluster, NodeProcess
from tests.helpers.streams import Asked, Question, ask
from tests.system.conftest import again, made_whole, three_running
from vramancer_cli.cluster.status import NodeStatus

MEMORY = "32MiB"
"""Two such nodes hold the built-in model; three share it."""
MARGIN = 1e-3
TOKENS = 90
BEFORE = 6
"""So many pieces of each stream have come before anything is hurt: at least 80 tokens are to come."""
GREEDY = Question("Tell me about layers", TOKENS)
SEEDED = Question("How do I join", TOKENS, temperature=0.9, seed=7)
WHOLE = Question("What is a plan", TOKENS, temperature=0.7, seed=3, stream=False)
QUESTIONS = (GREEDY, SEEDED, WHOLE)


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head and two workers, of which each can be spared; every test hurts one, and gives it back."""
    with three_running(tmp_path_factory.mktemp("spare"), MEMORY) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(spare: LocalCluster) -> dict[Question, str]:
    """What the answers are when nothing happens."""
    texts = {question: ask(spare.head.api_url, question) for question in QUESTIONS}
    with OpenAI(base_url=f"{spare.head.api_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        choice = client.completions.create(**GREEDY.arguments() | {"stream": False, "logprobs": 2}).choices[0]
    assert choice.text == texts[GREEDY]
    for top in choice.logprobs.top_logprobs:
        best, second = sorted(top.values(), reverse=True)[:2]
        assert best - second > MARGIN, "rounding may decide here: choose another prompt"
    return texts


@pytest.fixture
def whole(spare: LocalCluster) -> Iterator[LocalCluster]:
    with made_whole(spare) as cluster:
        yield cluster


def layer_tokens(cluster: LocalCluster, name: str) -> int:
    """What a node has computed so far, by its own word."""
    return next(node.layer_tokens for node in cluster.client.status(fresh=True).nodes if node.name == name)


def under_way(cluster: LocalCluster, victim: NodeProcess) -> list[Asked]:
    """All questions at once, well under way; the victim has computed for them, and most is still to come."""
    before = layer_tokens(cluster, victim.folder.name)
    asked = [Asked(cluster.head.api_url, question) for question in QUESTIONS]
    for one in asked:
        if one.question.stream:
            one.wait_for_pieces(BEFORE)
    assert layer_tokens(cluster, victim.folder.name) > before, "it had no part in the answers"
    assert all(len(one.pieces) < TOKENS - 50 for one in asked), "it was too late to hurt anything"
    return asked


def told_whole(asked: list[Asked], undisturbed: dict[Question, str]) -> None:
    for one in asked:
        one.join()
        assert one.error is None, one.error_message
        assert one.finish_reason == "length"
        assert one.text == undisturbed[one.question]


def holding(cluster: LocalCluster) -> set[str]:
    return {node.name for node in cluster.client.status().nodes if node.layers is not None}


def test_answers_go_on_when_a_worker_is_killed_and_their_texts_are_the_same(
    whole: LocalCluster, undisturbed: dict[Question, str]
) -> None:
    victim = whole.workers[1]
    asked = under_way(whole, victim)
    victim.kill()
    told_whole(asked, undisturbed)
    assert holding(whole) == {"head", "worker-1"}
    assert "requests=wait" in whole.head.output
    assert whole.workers[0].output.count(" joined ") == 1, "the other one was lost too"
    whole.workers[1] = again(whole, victim)


@pytest.mark.faults
def test_answers_go_on_when_a_worker_is_stopped_by_ctrl_c_which_hands_its_layers_over_first(
    whole: LocalCluster, undisturbed: dict[Question, str]
) -> None:
    victim = whole.workers[0]
    asked = under_way(whole, victim)
    assert victim.stop() == 0
    assert "handing the layers over" in victim.output
    assert "moved to use other nodes" in whole.head.output
    told_whole(asked, undisturbed)
    lost = [line for line in whole.head.output.splitlines() if "serving stopped" in line]
    assert "was lost" not in lost[-1], "it went before others had its layers"
    whole.workers[0] = again(whole, victim)


def emptied(cluster: LocalCluster, name: str) -> NodeStatus:
    """The node's status once it says itself that it holds nothing: it unloads a moment after it was told to."""
    until = time.monotonic() + 10
    while True:
        status = next(node for node in cluster.client.status(fresh=True).nodes if node.name == name)
        if not status.memory_used_bytes:
            return status
        assert time.monotonic() < until, "it keeps what it was told to unload"
        time.sleep(0.05)


def test_a_drained_worker_holds_nothing_and_answers_go_on(
    whole: LocalCluster, undisturbed: dict[Question, str]
) -> None:
    victim = whole.workers[1]
    asked = under_way(whole, victim)
    node = whole.client.drain_node("worker-2")
    assert holding(whole) == {"head", "worker-1"}
    status = emptied(whole, "worker-2")
    assert (status.id, status.state) == (node, "spare")
    assert "drained" in status.why
    told_whole(asked, undisturbed)
    victim.kill()
    time.sleep(0.5)
    assert holding(whole) == {"head", "worker-1"}
    whole.workers[1] = again(whole, victim)


@pytest.mark.faults
def test_a_worker_that_is_killed_while_prompts_are_read(whole: LocalCluster) -> None:
    """Several steps of prefill: nothing has been told yet when it dies. Asked undisturbed afterwards: what was read
    before would be found in the cache."""
    questions = [replace(question, prompt="word thing " * 480 + question.prompt) for question in QUESTIONS]
    victim = whole.workers[1]
    before = layer_tokens(whole, "worker-2")
    asked = [Asked(whole.head.api_url, question) for question in questions]
    while layer_tokens(whole, "worker-2") == before:
        time.sleep(0.005)
    assert not any(one.pieces for one in asked), "it was too late for the prompts"
    victim.kill()
    for one in asked:
        one.join()
    told_whole(asked, {question: ask(whole.head.api_url, question) for question in questions})
    whole.workers[1] = again(whole, victim)


@pytest.mark.faults
def test_a_silent_worker_is_given_up_in_time_and_comes_back_when_it_wakes(
    whole: LocalCluster, undisturbed: dict[Question, str]
) -> None:
    victim = whole.workers[1]
    asked = under_way(whole, victim)
    victim.process.send_signal(signal.SIGSTOP)
    try:
        told_whole(asked, undisturbed)
        assert holding(whole) == {"head", "worker-1"}
    finally:
        victim.process.send_signal(signal.SIGCONT)
    whole.wait_ready(3)
    assert victim.output.count(" joined ") == 2, "by itself, without a code"
    assert "; slept " in next(node.why for node in whole.client.status().nodes if node.name == "worker-2")
    victim.process.send_signal(signal.SIGSTOP)
    try:
        until = time.monotonic() + 10
        while (state := next(n for n in whole.client.status().nodes if n.name == "worker-2").state) != "asleep":
            assert time.monotonic() < until, f"it is {state}"
            time.sleep(0.1)
    finally:
        victim.process.send_signal(signal.SIGCONT)
    whole.wait_ready(3)


@pytest.mark.faults
def test_a_second_ctrl_c_leaves_at_once(whole: LocalCluster, undisturbed: dict[Question, str]) -> None:
    victim = whole.workers[1]
    asked = under_way(whole, victim)
    whole.head.process.send_signal(signal.SIGSTOP)  # so that it is not let go
    try:
        for _ in range(2):
            victim.process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        assert victim.process.wait(10) == 0
    finally:
        whole.head.process.send_signal(signal.SIGCONT)
    told_whole(asked, undisturbed)
    whole.workers[1] = again(whole, victim)


@pytest.mark.faults
def test_workers_of_a_killed_head_keep_their_layers_and_find_it_again(whole: LocalCluster) -> None:
    node_port = whole.head.node_port
    loads = [worker.output.count("stage ready") for worker in whole.workers]
    used = [node.memory_used_bytes for node in whole.client.status(fresh=True).nodes if node.role == "worker"]
    assert all(used)
    whole.head.kill()
    whole.start_head("--node-port", str(node_port))
    up_at = time.monotonic()
    while len(whole.client.status().nodes) < 3:
        assert time.monotonic() - up_at < 5, "they did not find it"
        time.sleep(0.05)
    whole.wait_ready(3)
    for worker, before in zip(whole.workers, loads, strict=True):
        assert "head lost, retrying" in worker.output
        assert worker.output.count("stage ready") == before + 1
    assert ask(whole.head.api_url, GREEDY)


@pytest.mark.faults
def test_two_workers_that_are_killed_at_once(whole: LocalCluster, undisturbed: dict[Question, str]) -> None:
    whole.add_worker()
    whole.wait_ready(4)
    victims = whole.workers[1:]
    asked = under_way(whole, victims[0])
    for victim in victims:
        victim.process.kill()
    told_whole(asked, undisturbed)
    assert holding(whole) == {"head", "worker-1"}
    for victim in victims:
        victim.process.wait()
    whole.workers[1:] = [again(whole, victim) for victim in victims]
    whole.wait_ready(4)
