"""`make bench-bulk`: what a transfer of weights costs a sequence that runs meanwhile, and how fast it is alone.

    python -m bench.bulk [--rounds N] [--share GOAL]

A head and a worker on this machine answer with the built-in model; a third node, in this process, fetches its weights
from the head, again and again. Rounds with and without a transfer take turns. Writes results/bulk.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from build_scripts.local_cluster import LocalCluster, local_cluster
from transport.bulk import TlsBulkLink
from transport.contracts import Received
from transport.endpoint import Endpoint
from transport.errors import TransportError
from transport.identity import Credentials, make_key
from transport.joining import pair
from transport.messages import PROTOCOL_MAJOR, PROTOCOL_MINOR, AskModel, Hello, ModelFiles, ModelRef
from transport.types import Address, Versions
from vramancer_cli.models.catalog import BUILTIN_NAME, builtin_folder
from vramancer_cli.models.weight_files import ByteRange
from vramancer_cli.runtime.weight_copy import WeightCopy
from vramancer_cli.runtime.weight_fetch import fetch_heads, fetch_ranges

RESULTS: Final = Path(__file__).parent / "results"
TOKENS: Final = 200
SETTLE_S: Final = 1.0
MEMORY: Final = "24MiB"
MIB: Final = 1 << 20


@dataclass(slots=True)
class Figures:
    """Tokens/s of one running sequence by round, and MiB/s of the transfer."""

    alone: list[float] = field(default_factory=list[float])
    beside_a_transfer: list[float] = field(default_factory=list[float])
    transfer_while_busy: list[float] = field(default_factory=list[float])
    transfer_while_idle: list[float] = field(default_factory=list[float])

    @property
    def kept(self) -> float:
        return median(self.beside_a_transfer) / median(self.alone)


class Transfer:
    """Fetches the whole model into an empty copy until it is stopped; `moved_bytes` counts on."""

    def __init__(self, link: TlsBulkLink, ref: ModelRef, files: ModelFiles, folder: Path) -> None:
        self._link, self._ref, self._files, self._folder = link, ref, files, folder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.moved_bytes = 0
        self._before = 0

    def __enter__(self) -> Transfer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._link.hang_up()
        self._thread.join()
        self._link.close()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                shutil.rmtree(self._folder, ignore_errors=True)
                self._fetch(WeightCopy(self._folder, self._ref))
        except TransportError:
            assert self._stop.is_set(), "the transfer broke"

    def _fetch(self, copy: WeightCopy) -> None:
        fetch_heads(self._link, copy, self._ref)
        paths = sorted(copy.folder.glob("*.safetensors"))
        sizes = zip(paths, self._files.files, strict=True)
        ranges = [ByteRange(path, file.head_bytes, file.size_bytes - file.head_bytes) for path, file in sizes]
        before = self.moved_bytes

        def arrived(_there: int, moved_bytes: int) -> None:
            self.moved_bytes = before + moved_bytes

        fetch_ranges(self._link, copy, ranges, arrived)


def answer_tokens_per_s(url: str) -> float:
    """Of one greedy completion, as long as it gets."""
    ask = {"model": BUILTIN_NAME, "prompt": "Once upon a time", "temperature": 0, "max_tokens": TOKENS}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(ask).encode(), {"Content-Type": "application/json"}
    )
    tokens, began_s = 0, time.monotonic()
    while tokens < TOKENS:
        with urllib.request.urlopen(request, timeout=120) as reply:
            tokens += json.load(reply)["usage"]["completion_tokens"]
    return tokens / (time.monotonic() - began_s)


@contextmanager
def third_node(cluster: LocalCluster, loop: asyncio.AbstractEventLoop) -> Iterator[tuple[Endpoint, Credentials]]:
    """A node of the cluster that only fetches; its loop runs on a thread of its own."""
    code, _ = cluster.client.invite()
    head = [Address("127.0.0.1", cluster.head.node_port)]
    credentials = _on(loop, pair(head, code, name="third", key_pem=make_key()))
    hello = Hello(PROTOCOL_MAJOR, PROTOCOL_MINOR, Versions("bench", "", ""), credentials.node_id, "third", "control")
    endpoint: Endpoint = _on(
        loop, Endpoint.open(credentials, hello, host="127.0.0.1", port=0, on_control=_nobody, sink=_NoData())
    )
    try:
        yield endpoint, credentials
    finally:
        _on(loop, endpoint.close())


async def _nobody(_link: object) -> None:
    return


class _NoData:
    def on_frame(self, sender: str, received: Received) -> None:
        raise AssertionError("nobody sends activations here")

    def on_closed(self, sender: str, error: TransportError | None) -> None:
        return


def _on(loop: asyncio.AbstractEventLoop, work):
    return asyncio.run_coroutine_threadsafe(work, loop).result(60)


def measure(cluster: LocalCluster, rounds: int, folder: Path, loop: asyncio.AbstractEventLoop) -> Figures:
    figures = Figures()
    url = cluster.head.api_url
    with third_node(cluster, loop) as (endpoint, credentials):

        def transfer() -> Transfer:
            link: TlsBulkLink = _on(
                loop, endpoint.dial_bulk([Address("127.0.0.1", cluster.head.node_port)], credentials.head)
            )
            ref = ModelRef(BUILTIN_NAME, "builtin", BUILTIN_NAME, _digest())
            link.ask(AskModel(ref.digest))
            files = link.answer().message
            assert isinstance(files, ModelFiles), files
            return Transfer(link, ref, files, folder)

        answer_tokens_per_s(url)  # warm
        with transfer() as running:
            time.sleep(SETTLE_S)
            figures.transfer_while_idle.append(_mib_per_s(running, lambda: time.sleep(3)))
        for number in range(rounds):
            figures.alone.append(answer_tokens_per_s(url))
            with transfer() as running:
                speed: list[float] = []
                busy = _mib_per_s(running, lambda s=speed: s.append(answer_tokens_per_s(url)))
                figures.transfer_while_busy.append(busy)
                figures.beside_a_transfer += speed
            print(f"round {number + 1}: {figures.alone[-1]:.1f} alone, {figures.beside_a_transfer[-1]:.1f} beside")
    return figures


def _mib_per_s(running: Transfer, work) -> float:
    before, began_s = running.moved_bytes, time.monotonic()
    work()
    return (running.moved_bytes - before) / MIB / (time.monotonic() - began_s)


def _digest() -> str:
    from vramancer_cli.engine.weights import digest

    return digest(builtin_folder())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.9)
    options = parser.parse_args()
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with local_cluster(folder / "cluster", MEMORY) as cluster:
            cluster.start_head()
            cluster.add_worker()
            cluster.wait_ready(2)
            figures = measure(cluster, options.rounds, folder / "shelf", loop)
    machine = {"system": platform.platform(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    (RESULTS / "bulk.json").write_text(
        json.dumps({**asdict(figures), "kept": figures.kept, **machine}, indent=2) + "\n"
    )
    word = "reached" if figures.kept >= options.share else "missed"
    print(f"a running sequence keeps {figures.kept:.0%} of its speed (goal {options.share:.0%}: {word})")
    busy, idle = median(figures.transfer_while_busy), median(figures.transfer_while_idle)
    print(f"the transfer moves {busy:.1f} MiB/s beside it, {idle:.1f} MiB/s when nothing runs")


if __name__ == "__main__":
    main()
