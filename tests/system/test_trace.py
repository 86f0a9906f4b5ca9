"""What real nodes do at the same time, by their own spans: orders and counts, never how long."""

from __future__ import annotations

import itertools
import json
import threading

from openai import OpenAI

from build_scripts.local_cluster import LocalCluster
from tests.helpers.verbs import run_verb
from tests.vramancer_cli.telemetry.test_trace_events import check_trace_file
from vramancer_cli.telemetry.cluster_trace import ClusterTrace, TracedSpan

LONG_PROMPT = [5 + number % 200 for number in range(640)]


def client(cluster: LocalCluster) -> OpenAI:
    return OpenAI(base_url=f"{cluster.head.api_url}/v1", api_key="none", max_retries=0, timeout=60)


def asked(cluster: LocalCluster, prompt: list[int], tokens: int) -> None:
    client(cluster).completions.create(model="vramancer-guide", prompt=prompt, temperature=0, max_tokens=tokens)


def computed(trace: ClusterTrace, stage: int) -> dict[int, TracedSpan]:
    """By step."""
    node = trace.node(trace.stages[stage].node)
    return {span.number: span for span in node.of_kind("compute") if span.stage == stage}


def test_every_step_passes_every_stage_in_order(three_nodes: LocalCluster) -> None:
    asked(three_nodes, LONG_PROMPT[:9], 12)
    trace = three_nodes.client.trace(20.0)
    assert len(trace.nodes) == len(trace.stages) == 3
    assert all(node.clock_error_s is not None for node in trace.nodes)
    stages = [computed(trace, stage) for stage in range(3)]
    committed = {span.number for span in trace.nodes[0].of_kind("commit")}
    assert committed and committed <= stages[0].keys() & stages[1].keys() & stages[2].keys()
    errors_s = sum(node.clock_error_s or 0.0 for node in trace.nodes)
    for number in committed:
        first, second, third = (stage[number] for stage in stages)
        assert first.ended_s <= second.began_s + errors_s and second.ended_s <= third.began_s + errors_s
    for node, stage in zip(trace.nodes[1:], (1, 2), strict=True):
        sent = {span.number for span in node.of_kind("send")}
        received = {span.number for span in node.of_kind("receive")}
        assert committed <= sent and committed <= received, f"stage {stage}"


def test_the_chunks_of_a_prompt_follow_each_other_through_the_stages(three_nodes: LocalCluster) -> None:
    """A chunk is scheduled before the one before it is back: several are on their way at once."""
    three_nodes.client.trace(1.0)
    asked(three_nodes, LONG_PROMPT[::-1], 1)
    trace = three_nodes.client.trace(20.0)
    head = trace.nodes[0]
    chunks = sorted((s for s in head.of_kind("schedule") if s.prompt_tokens), key=lambda span: span.number)[-4:]
    back = {span.number: span.began_s for span in head.of_kind("commit")}
    assert len(chunks) == 4
    for before, after in itertools.pairwise(chunks):
        assert after.ended_s <= back[before.number], "the second of two chunks waited for the first one's results"
    # On the head's own clock: stage 0 works on the next chunk while the last one is with the stages behind it.
    first = computed(trace, 0)
    overlapped = [a for b, a in itertools.pairwise(chunks) if first[a.number].began_s < back[b.number]]
    assert len(overlapped) == 3


def test_decodes_slip_in_between_the_chunks_of_somebody_elses_prompt(three_nodes: LocalCluster) -> None:
    talker = threading.Thread(target=asked, args=(three_nodes, LONG_PROMPT[3:20], 200))
    talker.start()
    for start in (100, 200):
        asked(three_nodes, LONG_PROMPT[start:] + LONG_PROMPT[:start], 1)
    talker.join()
    scheduled = list(three_nodes.client.trace(30.0).nodes[0].of_kind("schedule"))
    assert any(0 < span.prompt_tokens < span.tokens for span in scheduled), "no step had both"


async def test_the_verb_draws_it_and_writes_a_file(three_nodes: LocalCluster) -> None:
    asked(three_nodes, LONG_PROMPT[50:60], 8)
    out, url = three_nodes.folder / "trace.json", three_nodes.head.api_url
    ran = await run_verb(three_nodes.folder, "trace", "--seconds", "20", "--out", str(out), VRM_URL=url)
    assert ran.code == 0, ran.err
    assert "0 head [0, " in ran.out and " worker-2 [" in ran.out
    events = check_trace_file(json.loads(out.read_text()))
    assert {event["pid"] for event in events} == {1, 2, 3}
    on_worker = await run_verb(three_nodes.folder, "trace", VRM_URL=three_nodes.workers[0].api_url)
    assert on_worker.code == 2 and "Only the master" in on_worker.err
