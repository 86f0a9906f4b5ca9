"""Traffic on a real cluster, and a random fault every so often; afterwards every request is held against the truth.

    python -m tests.soak [--minutes N] [--seed N] [--every SECONDS] [--folder FOLDER]

A head and three workers, each of which can be spared, on this machine; the workers reach the head through a proxy that
hurts what passes. Writes the report beside the results of the benchmarks, as Markdown and as JSON; exits with 1 for a
lie, a leak or a traceback.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from build_scripts.local_cluster import LocalCluster, local_cluster
from tests.helpers.fault_proxy import FaultProxy, fault_proxy
from tests.soak.harm import Harm
from tests.soak.history import Figures, Happened, History, leaks, lies, markdown, summary
from tests.soak.traffic import QUESTIONS, Traffic, ask
from vramancer_cli.errors import VramancerError

RESULTS = Path(__file__).parents[2] / "bench" / "results"
MEMORY = "32MiB"
"""Two such nodes hold the built-in model."""
WORKERS = 3
READY_S = 120.0
"""Longer than a quarantine."""
CALM_S = 10.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=float, default=20.0)
    parser.add_argument("--folder", help="where the nodes' folders and logs stay; else they go")
    options = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory() as passing,
        local_cluster(Path(options.folder or passing), memory=MEMORY) as cluster,
    ):
        cluster.start_head()
        with fault_proxy(cluster.head.node_port, seed=options.seed) as proxy:
            for number in range(WORKERS):
                cluster.workers.append(cluster.new_worker(f"worker-{number + 1}", at=f"127.0.0.1:{proxy.port}"))
            history = soak(cluster, proxy, options.minutes * 60, options.seed, options.every)
            write_report(history, options.minutes, options.seed)
    return 1 if lies(history) or leaks(history) or history.complaints else 0


def write_report(history: History, minutes: float, seed: int) -> None:
    command = f"make soak MINUTES={minutes:g} SEED={seed}"
    report = markdown(history, minutes, command)
    (RESULTS / "soak.md").write_text(report)
    (RESULTS / "soak.json").write_text(json.dumps(summary(history), indent=1) + "\n")
    print(report, flush=True)


def soak(cluster: LocalCluster, proxy: FaultProxy, seconds: float, seed: int, every_s: float) -> History:
    whole(cluster)
    history = History(seed, {q: ask(cluster.head.api_url, q, time.monotonic()).text for q in QUESTIONS})
    traffic = Traffic(cluster.head.api_url, seed)
    warm_up(cluster, proxy, seed)
    history.before = figures(cluster)
    began_s = time.monotonic()
    traffic.start()
    try:
        hurt_again_and_again(Harm(cluster, proxy, random.Random(seed)), history, began_s, seconds, every_s)
    except (AssertionError, VramancerError, TimeoutError) as error:
        history.complaints.append(f"{type(error).__name__}: {error}")
    finally:
        proxy.healed()
        ended = traffic.stop()
    history.told = traffic.told
    check_afterwards(cluster, history, ended)
    return history


def warm_up(cluster: LocalCluster, proxy: FaultProxy, seed: int) -> None:
    """What comes once and stays (threads, the C library's arenas, a moved plan) comes before the first figures."""
    Harm(cluster, proxy, random.Random(seed)).crowd()
    warming = Traffic(cluster.head.api_url, seed, clients=8)
    warming.start()
    Harm(cluster, proxy, random.Random(seed)).cut()
    time.sleep(10)
    warming.stop()
    whole(cluster)
    time.sleep(CALM_S)


def hurt_again_and_again(harm: Harm, history: History, began_s: float, seconds: float, every_s: float) -> None:
    bag: list[tuple[str, Callable[[], None]]] = []
    while time.monotonic() - began_s < seconds:
        at_s = time.monotonic()
        bag = bag or harm.rng.sample(kinds := list(harm.kinds.items()), len(kinds))  # each as often as the others
        name, hurt = bag.pop()
        print(f"{at_s - began_s:7.1f} s  {name}", flush=True)
        hurt()
        left_s = at_s + every_s - time.monotonic()
        served(harm.cluster)
        history.happened.append(Happened(name, at_s - began_s, time.monotonic() - at_s))
        time.sleep(max(0.0, left_s))


def served(cluster: LocalCluster) -> None:
    """Until the model answers again, with however many nodes."""
    until = time.monotonic() + READY_S
    while cluster.client.status().state != "ready":
        assert time.monotonic() < until, f"not served again: {cluster.client.status().reason}"
        time.sleep(0.1)


def whole(cluster: LocalCluster) -> None:
    """Until all hold layers again; the quarantine of one that lied is waited for."""
    cluster.wait_ready(1 + WORKERS, deadline_s=READY_S)


def figures(cluster: LocalCluster) -> dict[str, Figures]:
    found: dict[str, Figures] = {}
    for node in cluster.nodes:
        process = psutil.Process(node.process.pid)
        memory = process.memory_full_info().uss
        found[f"{node.folder.name} ({process.pid})"] = Figures(process.num_threads(), process.num_fds(), memory)
    return found


def check_afterwards(cluster: LocalCluster, history: History, ended: bool) -> None:
    if not ended:
        history.complaints.append("a request never ended")
    try:
        whole(cluster)
    except (VramancerError, TimeoutError) as error:
        nodes = "; ".join(f"{node.name}: {node.state}, {node.why}" for node in cluster.client.status().nodes)
        history.complaints.append(f"the cluster is not whole again: {error}; {nodes}")
    time.sleep(CALM_S)
    status = cluster.client.status()
    if status.running or status.waiting:
        history.complaints.append(f"{status.running} running and {status.waiting} waiting, and nobody asks")
    history.after = figures(cluster)
    for node in cluster.nodes:
        if "Traceback" in node.output or "never retrieved" in node.output:
            history.complaints.append(f"{node.folder.name} wrote a traceback:\n{node.output[-3000:]}")


if __name__ == "__main__":
    sys.exit(main())
