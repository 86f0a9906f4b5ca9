"""The cluster as a person sees it, at each moment of its life."""

from __future__ import annotations

from msgspec.structs import replace

from tests.helpers.cluster_bench import ClusterBench
from tests.helpers.planning_values import HEAD, MIB, model_facts, node_facts, node_id, node_load, settings
from transport.messages import LinkLoad
from transport.types import Versions
from vramancer_cli.cluster import events
from vramancer_cli.cluster.board import cluster_status
from vramancer_cli.cluster.records import BACK_OFF_S, FAILURES
from vramancer_cli.cluster.status import ClusterStatus, LinkStatus, NodeStatus

FACTS = model_facts(layers=(MIB,) * 8, ends=MIB)
ONE, TWO = node_id(1), node_id(2)


def board(bench: ClusterBench) -> ClusterStatus:
    return cluster_status(
        bench.state,
        cluster="home",
        cluster_id="abc",
        version="0.1.0",
        uptime_s=12.0,
        running=1,
        waiting=2,
        tokens_per_s=3.5,
        api_url="http://127.0.0.1:5000",
        now=bench.now,
    )


def node(bench: ClusterBench, identifier: str) -> NodeStatus:
    return next(entry for entry in board(bench).nodes if entry.id == identifier)


def bench_of(*limits_mib: int) -> ClusterBench:
    bench = ClusterBench()
    bench.choose(FACTS, settings())
    for number, limit_mib in enumerate(limits_mib):
        bench.join_number(number, limit_mib * MIB)
    return bench


def test_before_anything_happened() -> None:
    status = board(ClusterBench())
    assert (status.state, status.reason, status.nodes) == ("waiting", "No model has been chosen yet.", ())


def test_before_the_first_plan_nodes_are_joined() -> None:
    bench = bench_of(30, 30)
    status = board(bench)
    assert status.state == "waiting"
    assert "other machines" in status.reason
    assert {entry.state for entry in status.nodes} == {"joined"}
    assert status.nodes[1].why == "waits for its layers"
    assert (status.model, status.layer_count, status.context_tokens) == ("tiny", 8, 32)


def test_while_it_loads() -> None:
    bench = bench_of(30, 30)
    bench.wait(1.0)
    bench.reconcile()
    bench.answer(HEAD)
    bench.note(events.StageLoading(ONE, 1, 1, 4, 1.0))
    status = board(bench)
    assert status.state == "loading"
    assert status.reason.startswith("Loading the model: 1 of 2 nodes are ready, ")
    assert [(n.state, n.loaded_fraction) for n in status.nodes] == [("ready", 1.0), ("loading", 0.25)]


def test_while_a_node_fetches_its_weights() -> None:
    bench = bench_of(30, 30)
    bench.wait(1.0)
    bench.reconcile()
    bench.note(events.StageFetching(ONE, 1, 3 << 20, 12 << 20, 1.0))
    status = board(bench)
    assert status.reason.endswith("fetches its weights from the master: 3 of 12 MiB.")
    assert [(n.fetched_bytes, n.fetch_bytes) for n in status.nodes if n.id == ONE] == [(3 << 20, 12 << 20)]
    bench.note(events.StageFetching(ONE, 1, 12 << 20, 12 << 20, 2.0))
    assert "fetches" not in board(bench).reason


def test_when_it_serves() -> None:
    bench = bench_of(30, 30, 1)
    bench.run_until_quiet()
    bench.note(events.NodeHeard(ONE, bench.now, node_load(7, 8, 9), 0.002))
    bench.note(events.NodeHeard(HEAD, bench.now, node_load(1, 2, 3), 0.0))
    status = board(bench)
    assert (status.state, status.reason, status.epoch, status.dtype) == ("ready", "", 1, "float32")
    assert (status.running, status.waiting, status.tokens_per_s, status.uptime_s) == (1, 2, 3.5, 12.0)
    assert [entry.id for entry in status.nodes] == [HEAD, ONE, TWO]
    head, worker, spare = status.nodes
    assert (head.role, head.round_trip_s, head.memory_used_bytes) == ("head", None, 1)
    assert (worker.role, worker.round_trip_s, worker.layer_tokens) == ("worker", 0.002, 8)
    assert worker.memory_limit_bytes == 30 * MIB
    assert head.layers == (0, worker.layers[0]) if worker.layers is not None else False
    assert (worker.state, worker.direct, worker.device, worker.address) == ("ready", True, "cpu", "127.0.0.1:5001")
    assert worker.why.startswith("layers ")
    assert (spare.state, spare.layers) == ("spare", None)
    assert "no layers" in spare.why
    assert ClusterStatus.from_json(status.to_json()) == status


def test_links_are_told_as_their_senders_saw_them_last() -> None:
    bench = bench_of(30, 30, 1)
    bench.run_until_quiet()
    to_worker, to_head = LinkLoad(ONE, 12_500_000, "int8"), LinkLoad(HEAD, 0, "plain")
    for sender, load in ((HEAD, to_worker), (ONE, to_head), (TWO, to_worker)):
        bench.note(events.NodeHeard(sender, bench.now, replace(node_load(1, 2, 3), links=(load,)), 0.002))
    status = board(bench)
    head, worker, _ = (entry.name for entry in status.nodes)
    assert status.links == (LinkStatus(head, worker, 12_500_000, "int8"), LinkStatus(worker, head, 0, "plain"))
    assert ClusterStatus.from_json(status.to_json()) == status
    older = status.to_json()
    del older["links"]
    assert ClusterStatus.from_json(older).links == ()


def test_a_head_with_the_ends_alone_is_ready_when_it_serves() -> None:
    bench = bench_of(5, 60)
    bench.wait(1.0)
    bench.reconcile()
    assert (node(bench, HEAD).state, node(bench, HEAD).layers) == ("loading", None)
    bench.run_until_quiet()
    assert node(bench, HEAD).state == "ready"
    assert node(bench, HEAD).why.startswith("both ends")


def test_a_lost_node_comes_last_with_its_reason() -> None:
    bench = bench_of(60, 60, 60)
    bench.run_until_quiet()
    bench.lose(1, "silent for 3.1 s")
    status = board(bench)
    assert (status.state, status.reason) == ("loading", "Planning again: 'node-1' was lost: silent for 3.1 s.")
    bench.wait(12.0)
    lost = board(bench).nodes[-1]
    assert (lost.id, lost.state, lost.layers, lost.memory_used_bytes) == (ONE, "lost", None, 0)
    assert lost.why == "lost 12 s ago: silent for 3.1 s"


def test_too_little_memory_is_waiting_with_the_planners_sentence() -> None:
    bench = bench_of(10, 10)
    bench.run_until_quiet()
    status = board(bench)
    assert status.state == "waiting"
    assert "more would do on" in status.reason
    assert {entry.state for entry in status.nodes} == {"joined"}
    assert status.nodes[0].why == "not used: the model does not fit yet"
    bench.note(events.PlanFailed("the plan makes no sense", 0, bench.now))
    assert board(bench).state == "failed"


def test_a_refusal_stands_beside_the_missing_memory() -> None:
    bench = bench_of(30)
    bench.join_number(1, 30 * MIB, present_bytes=0)
    bench.run_until_quiet()
    reason = board(bench).reason
    assert "more would do on" in reason
    assert reason.endswith("'node-1' refused its layers: not enough memory")


def test_a_newcomer_while_busy_a_refusal_and_other_versions() -> None:
    bench = bench_of(60)
    bench.run_until_quiet()
    bench.note(events.BusyChanged(1, 0))
    bench.join_number(1, 60 * MIB, present_bytes=MIB)
    bench.join(node_facts(2, MIB, versions=Versions("0.1.0", "2.12.0", "5.23.0")))
    assert (node(bench, ONE).state, node(bench, ONE).why) == (
        "joined",
        "used as soon as no request is running, or enough of them wait",
    )
    assert node(bench, TWO).state == "spare"
    assert node(bench, TWO).why.startswith("not used: it computes with torch 2.12.0")
    bench.note(events.BusyChanged(0, 0))
    bench.run_until_quiet()
    assert node(bench, ONE).state == "spare"
    assert node(bench, ONE).why.endswith("; it refused before: not enough memory")


def test_a_node_that_keeps_failing_is_named_with_the_time_that_is_left() -> None:
    bench = bench_of(30, 30)
    for _ in range(FAILURES):
        bench.note(events.NodeLost(ONE, "the process ended.", bench.now, failed=True))
        bench.join_number(1, 30 * MIB)
    bench.run_until_quiet()
    assert node(bench, ONE).state == "spare"
    bench.wait(BACK_OFF_S - 90.0)
    assert node(bench, ONE).why.startswith("not used for another 2 min: it failed 3 times, ")
    assert node(bench, ONE).why.endswith(" the last time with: the process ended")
    status = board(bench)
    assert status.state == "waiting", "the head alone has too little memory"
    assert "'node-1' is not used for a while: it failed 3 times" in status.reason


def test_what_an_older_head_does_not_tell_has_a_default() -> None:
    told = board(bench_of(30)).to_json()
    for key in ("quantize", "prefix_found_tokens", "prefix_asked_tokens"):
        del told[key]
    for entry in told["nodes"]:
        del entry["devices"]
    status = ClusterStatus.from_json(told)
    assert (status.quantize, status.prefix_found_tokens, status.prefix_asked_tokens) == ("none", 0, 0)
    assert status.nodes[0].devices == ()
