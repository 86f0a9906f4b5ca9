"""This program as a user has it: real nodes, TLS between them, the HTTP API; and that they do what a row says.

A host of one core is a process that is kept on that core, with one thread to compute.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.table.model import Shape
from bench.table.streams import NotMeasuredError, Told, ask, crowd_rate, fresh_prompt
from bench.table.wire import Host, inside
from build_scripts.local_cluster import LocalCluster, local_cluster
from transport.types import WeightFormat
from vramancer_cli.cluster.status import ClusterStatus
from vramancer_cli.runtime.session import MAX_RUNNING

READY_S: Final = 240.0
LOOPBACK: Final = "127.0.0.1"
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
    """A cluster that serves `shape`."""

    cluster: LocalCluster
    shape: Shape
    model: str

    def prefill(self, tokens: int) -> float:
        """Tokens a second of a fresh prompt, up to the first token of the answer."""
        return self._ask(1, tokens, 1)[0].prefill_rate

    def decode(self, prompt_tokens: int, tokens: int, streams: int = 1) -> float:
        """Tokens a second, of all streams together while all of them run."""
        told = self._ask(streams, prompt_tokens, tokens)
        return told[0].decode_rate if streams == 1 else crowd_rate(told, MAX_RUNNING)

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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node runs: on which cores, () for all; on which host of a wire, None for this machine's own network."""

    cores: tuple[int, ...] = ()
    host: Host | None = None

    @contextmanager
    def entered(self) -> Iterator[None]:
        """What this thread starts meanwhile runs there."""
        with on_cores(self.cores), inside(self.host) if self.host else nullcontext():
            yield


@dataclass(frozen=True, slots=True)
class Serving:
    """What is served and how. `memory_bytes`: of each node, for its layers and their cache."""

    shape: Shape
    checkpoint: Path
    quantize: WeightFormat
    dtype: str = "bfloat16"
    context_tokens: int = 1024
    memory_bytes: int = 3 << 30
    device: str = "cpu"

    def flags(self) -> tuple[str, ...]:
        return (
            "--model", str(self.checkpoint), "--quantize", self.quantize, "--draft", "off",
            "--dtype", self.dtype, "--context", str(self.context_tokens), *self.memory(head=True), "--prefer", "room",
        )  # fmt: skip

    def memory(self, *, head: bool = False) -> tuple[str, ...]:
        """The head has more, by what embedding and output head take: all then get the same number of layers."""
        ends_bytes = 2 * self.shape.head_weights * _BFLOAT16_BYTES if head else 0
        return "--device", self.device, "--memory", str(self.memory_bytes + ends_bytes)


@contextmanager
def running(folder: Path, serving: Serving, places: Sequence[Place], threads: int = 1) -> Iterator[Ours]:
    """A node at each of `places`, warmed up. Who asks has to be in the first one's network."""
    with tempfile.TemporaryDirectory(dir=folder) as name, local_cluster(Path(name), threads=threads) as cluster:
        with on_cores(places[0].cores):
            cluster.start_head(*serving.flags())
        address = places[0].host.address if places[0].host else LOOPBACK
        for place in places[1:]:
            cluster.add_worker(*serving.memory(), host=address, place=place.entered())
        check_split(cluster.wait_ready(len(places), READY_S), len(places))
        ours = Ours(cluster, serving.shape, cluster.client.models()[0])
        ours.warm_up()
        yield ours
