"""What is done to the cluster, one thing at a time; each leaves it to itself to be whole again."""

from __future__ import annotations

import random
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from build_scripts.local_cluster import LocalCluster, NodeProcess
from tests.helpers.fault_proxy import FaultProxy, Faults
from tests.helpers.hostile_node import HostileNode, lies
from tests.soak.traffic import QUESTIONS, ask
from vramancer_cli.errors import VramancerError


@dataclass
class Harm:
    """Hurts `cluster`, whose workers reach the head through `proxy`."""

    cluster: LocalCluster
    proxy: FaultProxy
    rng: random.Random

    @property
    def kinds(self) -> dict[str, Callable[[], None]]:
        return {
            "kill -9 of a worker": self.kill,
            "SIGSTOP of a worker": self.freeze,
            "drain of a worker": self.drain,
            "a worker leaves by Ctrl-C": self.leave,
            "links cut in the middle": self.cut,
            "links swallow everything": self.swallow,
            "a slow, lossy network": self.slow,
            "a worker lies": self.lie,
            "a crowd of clients": self.crowd,
        }

    def kill(self) -> None:
        place, worker = self._some()
        worker.kill()
        time.sleep(self.rng.uniform(0, 5))
        self._again(place)

    def freeze(self) -> None:
        _, worker = self._some()
        worker.process.send_signal(signal.SIGSTOP)
        time.sleep(self.rng.uniform(1, 6))
        worker.process.send_signal(signal.SIGCONT)

    def drain(self) -> None:
        place, worker = self._some()
        with suppress(VramancerError):  # it cannot be spared just now
            self.cluster.client.drain_node(worker.folder.name)
        worker.stop()
        self._again(place)

    def leave(self) -> None:
        place, worker = self._some()
        worker.stop()
        self._again(place)

    def cut(self) -> None:
        self.proxy.there = Faults(cut_after_bytes=self.rng.randrange(1, 5000))
        time.sleep(0.5)
        self.proxy.cut()
        self.proxy.healed()

    def swallow(self) -> None:
        self.proxy.there, self.proxy.back = Faults(hole=True), Faults(hole=True)
        time.sleep(self.rng.uniform(0.5, 6))
        self.proxy.cut()
        self.proxy.healed()

    def slow(self) -> None:
        self.proxy.there = self.proxy.back = Faults(delay_s=0.02, jitter_s=0.03, loss=0.02, bytes_per_s=1.25e6)
        time.sleep(8)
        self.proxy.healed()

    def lie(self) -> None:
        _, worker = self._some()
        status = self.cluster.client.status()
        head = next(node.id for node in status.nodes if node.role == "head")
        with HostileNode(worker.folder) as face, suppress(OSError):
            link = face.data(self.cluster.head.node_port, head)
            link.sendall(self.rng.choice(sorted(lies().items()))[1](status.epoch, 3))
            time.sleep(0.5)

    def crowd(self) -> None:
        """Idle connections, half heads and slow readers, more than there are places for; and requests beside them."""
        host, _, port = self.cluster.head.api_url.rpartition("//")[2].rpartition(":")
        with ExitStack() as crowd:
            for number in range(400):
                with suppress(OSError):
                    client = crowd.enter_context(socket.create_connection((host, int(port)), 1))
                    client.sendall(b"" if number % 2 else b"POST /v1/completions HTTP/1.1\r\nHost: loc")
            time.sleep(2)
        ask(self.cluster.head.api_url, QUESTIONS[0], time.monotonic())

    def _some(self) -> tuple[int, NodeProcess]:
        return self.rng.choice(list(enumerate(self.cluster.workers)))

    def _again(self, place: int) -> None:
        """The same machine, out of its own folder."""
        worker = self.cluster.workers[place]
        memory = ["--memory", self.cluster.memory, "--name", worker.folder.name]
        arguments = ["start", "--port", "0", "--node-port", "0", *memory]
        self.cluster.workers[place] = NodeProcess.launch(worker.folder, arguments)
