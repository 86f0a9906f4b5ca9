"""Real VRAMancer nodes as processes of this machine, each with its own state folder, for the demo and the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from vramancer_cli.cluster.status import ClusterStatus
from vramancer_cli.errors import VramancerError
from vramancer_cli.runtime import run_file
from vramancer_cli.runtime.run_file import RunRecord
from vramancer_cli.serving.client import ApiClient

POLL_S = 0.1


class NodeDiedError(VramancerError):
    """A node process ended before it was ready."""


@dataclass(slots=True)
class NodeProcess:
    """One `vramancer start` or `vramancer join`, its output in `folder/output.log`."""

    folder: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def launch(
        cls, folder: Path, arguments: Sequence[str], threads: int = 1, more: Mapping[str, str] | None = None
    ) -> NodeProcess:
        """`folder` becomes the node's state folder; `threads` is what torch may use; `more` of its environment."""
        folder.mkdir(parents=True, exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("VRM_")}
        environment |= {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", **(more or {})}
        with (folder / "output.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "vramancer_cli", *arguments, "--state-dir", str(folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                # Its own group: a Ctrl-C typed at the demo reaches the nodes only through `stop`.
                start_new_session=True,
            )
        return cls(folder, process)

    @property
    def output(self) -> str:
        return (self.folder / "output.log").read_text(errors="replace")

    @property
    def api_url(self) -> str:
        return self._run().api_url

    @property
    def node_port(self) -> int:
        return self._run().node_port

    def wait_live(self, deadline_s: float = 60.0) -> None:
        """Until its run file is there. Raises NodeDiedError, TimeoutError."""
        until = time.monotonic() + deadline_s
        while run_file.running(self.folder) is None:
            if self.process.poll() is not None:
                raise NodeDiedError(f"The node ended with exit code {self.process.returncode}:\n{self.output}")
            if time.monotonic() > until:
                raise TimeoutError(f"The node did not start within {deadline_s:.0f} s:\n{self.output}")
            time.sleep(POLL_S)

    def stop(self, deadline_s: float = 20.0) -> int:
        """Ctrl-C, then wait; its exit code. A node that does not end in time is killed."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _run(self) -> RunRecord:
        record = run_file.read(self.folder)
        if record is None:
            raise NodeDiedError(f"The node has no run file:\n{self.output}")
        return record


@dataclass(slots=True)
class LocalCluster:
    """A head and its workers. `memory` is each node's --memory."""

    folder: Path
    memory: str = ""
    threads: int = 1
    head: NodeProcess = field(init=False)
    workers: list[NodeProcess] = field(default_factory=list[NodeProcess])

    @property
    def nodes(self) -> list[NodeProcess]:
        return [self.head, *self.workers]

    @property
    def client(self) -> ApiClient:
        return ApiClient(self.head.api_url)

    def start_head(self, *extra: str, port: int = 0) -> NodeProcess:
        arguments = [
            "start",
            "--master",
            "--port",
            str(port),
            "--node-port",
            "0",
            "--name",
            "head",
            *self._memory(),
            *extra,
        ]
        self.head = NodeProcess.launch(self.folder / "head", arguments, self.threads)
        self.head.wait_live()
        return self.head

    def add_worker(
        self,
        *extra: str,
        discover: bool = False,
        host: str = "127.0.0.1",
        place: AbstractContextManager[object] | None = None,
    ) -> NodeProcess:
        """Join with a fresh code: by mDNS, or by the head's address on `host`. What is launched inherits `place`: the
        cores, or the network, that this thread has in it."""
        code, _ = self.client.invite()
        name = f"worker-{len(self.workers) + 1}"
        where = ["--auto-discover"] if discover else [f"{host}:{self.head.node_port}"]
        arguments = [
            "join",
            *where,
            "--code",
            code,
            "--port",
            "0",
            "--node-port",
            "0",
            "--name",
            name,
            *self._memory(),
            *extra,
        ]
        with place or nullcontext():
            worker = NodeProcess.launch(self.folder / name, arguments, self.threads)
        self.workers.append(worker)
        return worker

    def wait_ready(self, nodes: int, deadline_s: float = 90.0) -> ClusterStatus:
        """Until the model is served by `nodes` nodes. Raises NodeDiedError, TimeoutError."""
        until = time.monotonic() + deadline_s
        while True:
            status = self.client.status()
            holding = sum(node.layers is not None for node in status.nodes)
            if status.state == "ready" and holding == nodes:
                return self.client.status(fresh=True)
            for node in self.nodes:
                if node.process.poll() is not None:
                    raise NodeDiedError(f"A node ended with exit code {node.process.returncode}:\n{node.output}")
            if time.monotonic() > until:
                raise TimeoutError(f"Not ready within {deadline_s:.0f} s: {status.state}, {status.reason}")
            time.sleep(POLL_S)

    def stop(self) -> None:
        for node in reversed(self.workers):
            node.stop()
        if hasattr(self, "head"):
            self.head.stop()

    def _memory(self) -> list[str]:
        return ["--memory", self.memory] if self.memory else []


@contextmanager
def local_cluster(folder: Path, memory: str = "", threads: int = 1) -> Iterator[LocalCluster]:
    """A cluster that leaves no process behind."""
    cluster = LocalCluster(folder, memory, threads)
    try:
        yield cluster
    finally:
        cluster.stop()
