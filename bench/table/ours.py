"""This program as a user has it: real nodes, TLS between them, the HTTP API; and that they do what a row says.

A host of one core is a process that is kept on that core, with one thread to compute.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.table.model import Shape
from bench.table.streams import NotMeasuredError, Told, ask, crowd_rate, fresh_prompt
from build_scripts.local_cluster import LocalCluster, local_cluster
from vramancer_cli.cluster.status import ClusterStatus

READY_S: Final = 240.0
_BFLOAT16_BYTES: Final = 2


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """What is started meanwhile runs on these cores only; () for all."""
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, set(cores))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class Ours:
    """A cluster that serves `shape`, with how many nodes."""

    cluster: LocalCluster
    shape: Shape
    model: str
    hosts: int

    def prefill(self, tokens: int) -> float:
        """Tokens a second of a fresh prompt, up to the first token of the answer."""
        return self._ask(1, tokens, 1)[0].prefill_rate

    def decode(self, prompt_tokens: int, tokens: int, streams: int = 1) -> float:
        """Tokens a second, of all streams together while all of them run."""
        told = self._ask(streams, prompt_tokens, tokens)
        return told[0].decode_rate if streams == 1 else crowd_rate(told)

    def warm_up(self) -> None:
        """What does not count: steps of many rows, of one, and of several sequences."""
        self._ask(1, 128, 2)
        self._ask(16, 8, 4)

    def status(self) -> ClusterStatus:
        return self.cluster.client.status()

    def _ask(self, streams: int, prompt_tokens: int, tokens: int) -> list[Told]:
        """Raises NotMeasuredError where a prompt was found in the cache, a draft ran, or the layers moved."""
        prompts = [fresh_prompt(self.shape.vocabulary, prompt_tokens) for _ in range(streams)]
        before = self.status()
        told = ask(self.cluster.head.api_url, self.model, prompts, tokens)
        check_run(before, self.status())
        return told


def check_run(before: ClusterStatus, after: ClusterStatus) -> None:
    """Raises NotMeasuredError where between these two a prompt was found in the cache, a draft ran, or layers moved."""
    if after.prefix_found_tokens != before.prefix_found_tokens:
        raise NotMeasuredError("A part of a prompt was in the prefix cache.")
    if after.draft_acceptance is not None or (after.tokens_per_trip or 1.0) != 1.0:
        raise NotMeasuredError(f"A trip gave {after.tokens_per_trip} tokens: something was drafted.")
    if after.epoch != before.epoch:
        raise NotMeasuredError("The plan changed meanwhile.")


def check_split(status: ClusterStatus, hosts: int) -> None:
    """Raises NotMeasuredError unless so many nodes hold the layers, in equal parts where these can be."""
    held = sorted(node.layers for node in status.nodes if node.layers is not None)
    fair = status.layer_count / hosts
    if len(held) != hosts or any(abs(end - start - fair) >= 1 for start, end in held):
        raise NotMeasuredError(f"Layers are held as {held}, not in {hosts} equal parts.")


@contextmanager
def running(
    folder: Path, checkpoint: Path, shape: Shape, quantize: str, cores: Sequence[Sequence[int]], threads: int = 1,
    memory_bytes: int = 3 << 30, context_tokens: int = 1024, dtype: str = "bfloat16",
) -> Iterator[Ours]:  # fmt: skip
    """A node on each of `cores`, warmed up. `folder` for their state; `memory_bytes`: of each, for its layers.

    The head has more, by what embedding and output head take: the planner then gives all the same number of layers.
    """
    ends_bytes = 2 * shape.head_weights * _BFLOAT16_BYTES
    own = ("--device", "cpu", "--dtype", dtype, "--context", str(context_tokens))
    with local_cluster(folder, threads=threads) as cluster:
        with on_cores(cores[0]):
            cluster.start_head(
                "--model", str(checkpoint), "--quantize", quantize, "--draft", "off", *own,
                "--memory", str(memory_bytes + ends_bytes),
            )  # fmt: skip
        for place in cores[1:]:
            with on_cores(place):
                cluster.add_worker("--device", "cpu", "--memory", str(memory_bytes))
        check_split(cluster.wait_ready(len(cores), READY_S), len(cores))
        ours = Ours(cluster, shape, cluster.client.models()[0], len(cores))
        ours.warm_up()
        yield ours
