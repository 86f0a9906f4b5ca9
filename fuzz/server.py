"""A real head as its own process with the built-in model, on free loopback ports, watched while it is attacked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import psutil

from build_scripts.local_cluster import NodeProcess, local_cluster
from fuzz.findings import require

MEMORY: Final = "56MiB"
"""Room for the model and little more: the system gives a node its KV cache block by block, as it is first written, and
that is no memory lost."""
SETTLE_S: Final = 20.0
MORE_RSS: Final = 0.10
KEPT_BYTES: Final = 64 << 20
"""What the C library may keep of freed memory, see engine/heap."""
MORE_FDS: Final = 6
ERROR: Final = "Z error "


@dataclass(frozen=True, slots=True)
class Footprint:
    rss_bytes: int
    fds: int
    threads: int

    def __str__(self) -> str:
        return f"{self.rss_bytes / 2**20:.0f} MiB, {self.fds} descriptors, {self.threads} threads"


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    port: int
    model: str
    node: NodeProcess

    def footprint(self) -> Footprint:
        process = psutil.Process(self.node.process.pid)
        fds = process.num_fds() if hasattr(process, "num_fds") else 0
        return Footprint(process.memory_info().rss, fds, process.num_threads())

    def require_alive(self) -> None:
        code = self.node.process.poll()
        require(code is None, f"the server ended with exit code {code}:\n{self.node.output[-2000:]}")

    def require_flat(self, before: Footprint) -> Footprint:
        """Connections that were left half open have a while to end. Raises BrokenPromiseError."""
        until = time.monotonic() + SETTLE_S
        while (now := self.footprint()).fds > before.fds + MORE_FDS and time.monotonic() < until:
            time.sleep(0.5)
        require(now.fds <= before.fds + MORE_FDS, f"descriptors were left open: {before} before, {now} after")
        most_bytes = before.rss_bytes * (1 + MORE_RSS) + KEPT_BYTES
        require(now.rss_bytes <= most_bytes, f"memory grew: {before} before, {now} after")
        return now

    def require_quiet(self) -> None:
        """No error in its log: clients that send garbage or go away are no failure of the server."""
        lines = [line for line in self.node.output.splitlines() if ERROR in line]
        require(not lines, f"{len(lines)} errors in the server's log, first of them:\n{(lines or [''])[0]}")


@contextmanager
def running() -> Iterator[Server]:
    """Ready to answer; its process is gone afterwards."""
    with TemporaryDirectory(prefix="vramancer-fuzz-") as folder, local_cluster(Path(folder), MEMORY) as cluster:
        head = cluster.start_head()
        status = cluster.wait_ready(1)
        url = head.api_url
        yield Server(url, int(url.rpartition(":")[2].rstrip("/")), status.model, head)
