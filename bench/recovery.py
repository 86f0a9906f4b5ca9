"""How long an answer pauses when a node dies, falls silent or is drained: three nodes, the built-in model.

    python -m bench.recovery [--rounds N]

Every round hurts one of two workers in the middle of an answer, which the other two nodes go on with. Detect, plan and
load are read off the head's log; the rest, up to the next token, is the prompt and the tokens so far being computed
again. Prints a Markdown table, and writes it beside the other results.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from bench.reports import Measured
from build_scripts.local_cluster import LocalCluster, NodeProcess, local_cluster

MEMORY: Final = "32MiB"
"""Two such nodes hold the built-in model."""
PROMPT: Final = "Tell me everything about layers, nodes and plans."
BEFORE: Final = 40
RESULTS: Final = Path(__file__).parent / "results" / "recovery.md"
PARTS: Final = ("detect", "plan", "load", "compute again", "whole pause")
_ANSWER_S: Final = 60.0


@dataclass
class Answer:
    """One that is being read. `times`: when each piece came, Unix seconds."""

    cluster: LocalCluster
    times: list[float] = field(default_factory=list[float])

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._read, name="reader")
        self._thread.start()

    def _read(self) -> None:
        for _ in self.cluster.client.chat([{"role": "user", "content": PROMPT}], max_tokens=300, min_tokens=300):
            self.times.append(time.time())

    def wait_for(self, count: int) -> None:
        until = time.monotonic() + _ANSWER_S
        while len(self.times) < count and time.monotonic() < until:
            time.sleep(0.001)

    def join(self) -> None:
        self._thread.join(_ANSWER_S)


def one_round(cluster: LocalCluster, hurt: Callable[[NodeProcess], None]) -> tuple[float, ...]:
    """Seconds, as PARTS."""
    told = len(cluster.head.output)
    answer = Answer(cluster)
    answer.wait_for(BEFORE)
    hurt_s = time.time()
    hurt(cluster.workers[1])
    answer.join()
    log = cluster.head.output[told:].splitlines()
    stopped_s, planned_s, ready_s = (_when(log, words) for words in ("serving stopped", "planned", "ready"))
    again_s = next(at for at in answer.times if at >= ready_s)
    last_s = max(at for at in answer.times if at < again_s)
    # A drain plans before it stops: what is planned then costs no pause.
    ready_from_s = max(planned_s, stopped_s)
    return (
        max(0.0, stopped_s - hurt_s),
        max(0.0, planned_s - stopped_s),
        ready_s - ready_from_s,
        again_s - ready_s,
        again_s - last_s,
    )


def _when(log: Sequence[str], words: str) -> float:
    """Of the first line that says so after the loss."""
    line = next(line for line in log if f" {words} " in line)
    return datetime.fromisoformat(line.split()[0]).timestamp()


def _back(cluster: LocalCluster) -> None:
    """The hurt worker again, out of its own folder."""
    worker = cluster.workers[1]
    if worker.process.poll() is None:
        worker.process.send_signal(signal.SIGCONT)
        worker.kill()
    arguments = ["start", "--port", "0", "--node-port", "0", "--memory", MEMORY, "--name", worker.folder.name]
    cluster.workers[1] = NodeProcess.launch(worker.folder, arguments)
    cluster.wait_ready(3)


def measure(cluster: LocalCluster, rounds: int) -> str:
    ways: dict[str, Callable[[NodeProcess], None]] = {
        "killed (kill -9)": NodeProcess.kill,
        "silent (SIGSTOP)": lambda worker: worker.process.send_signal(signal.SIGSTOP),
        "drained": lambda worker: _drain(cluster, worker),
    }
    lines = ["| worker | " + " | ".join(PARTS) + " |", "| --- |" + " --- |" * len(PARTS)]
    for name, hurt in ways.items():
        found: list[tuple[float, ...]] = []
        for _ in range(rounds):
            found.append(one_round(cluster, hurt))
            _back(cluster)
        lines.append(
            f"| {name} | " + " | ".join(Measured("s", values).words() for values in zip(*found, strict=True)) + " |"
        )
    return "\n".join(lines) + "\n"


def _drain(cluster: LocalCluster, worker: NodeProcess) -> None:
    cluster.client.drain_node(worker.folder.name)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, local_cluster(Path(folder), memory=MEMORY) as cluster:
        cluster.start_head()
        for _ in range(2):
            cluster.add_worker()
        cluster.wait_ready(3)
        table = measure(cluster, options.rounds)
    RESULTS.write_text(table)
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
