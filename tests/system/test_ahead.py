"""Layers that are on a neighbour's disk before the node that held them dies: real processes, a slow network.

Three nodes share a model that only the head has. What recovery takes is printed for both ways.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from build_scripts.local_cluster import NodeProcess
from tests.helpers.slow_relay import SlowRelay, slow_relay
from tests.system.test_fetched_weights import MIB, answer, by_transformers, hub_cache, transfers, wait_for
from vramancer_cli.serving.client import ApiClient

SLOW_BYTES_PER_S = 1 * MIB
COMMIT = "c" * 40
PORTS = ["--port", "0", "--node-port", "0", "--memory", "24MiB"]

__all__ = ["hub_cache"]


class Scene:
    def __init__(self, folder: Path, hub: Path) -> None:
        self.folder = folder
        self.offline = {"HF_HUB_OFFLINE": "1", "HOME": str(folder / "nobody")}
        head = ["start", "--master", "--model", "org/tiny", "--dtype", "float32", "--prefer", "room", "--name", "head"]
        cache = ["--cache-dir", str(folder / "head-cache")]
        self.head = NodeProcess.launch(
            folder / "head", [*head, *PORTS, *cache], more=self.offline | {"HF_HOME": str(hub)}
        )
        self.workers: dict[str, NodeProcess] = {}

    @property
    def client(self) -> ApiClient:
        return ApiClient(self.head.api_url)

    def start(self, name: str, relay: SlowRelay | None = None) -> None:
        """`relay`: by pairing, through it; without: again, out of its own folder."""
        joining = [] if relay is None else [f"127.0.0.1:{relay.port}", "--code", self.client.invite()[0]]
        verb = ["start"] if relay is None else ["join", *joining]
        arguments = [*verb, *PORTS, "--name", name, "--cache-dir", str(self.folder / f"{name}-cache")]
        more = self.offline | {"HF_HOME": str(self.folder / "empty")}
        self.workers[name] = NodeProcess.launch(self.folder / name, arguments, more=more)

    def ready(self, nodes: int) -> bool:
        status = self.client.status()
        return status.state == "ready" and sum(node.layers is not None for node in status.nodes) == nodes

    def is_ahead(self, name: str) -> bool:
        node = next(node for node in self.client.status().nodes if node.name == name)
        return 0 < node.ahead_bytes == node.ahead_total_bytes

    def recovery_s(self, victim: str) -> float:
        began_s = time.monotonic()
        self.workers[victim].kill()
        wait_for(lambda: not self.ready(3), "nobody noticed")
        wait_for(lambda: self.ready(2), "it did not come back")
        return time.monotonic() - began_s

    def stop(self) -> None:
        for node in (*self.workers.values(), self.head):
            node.stop()


@pytest.mark.faults
def test_what_was_fetched_ahead_of_time_is_read_from_the_own_disk(tmp_path: Path, hub_cache: Path) -> None:
    expected = by_transformers(hub_cache / "hub" / "models--org--tiny" / "snapshots" / COMMIT)
    scene = Scene(tmp_path, hub_cache)
    try:
        scene.head.wait_live()
        with slow_relay(scene.head.node_port, None) as relay:
            for name in ("one", "two"):
                scene.start(name, relay)
            wait_for(lambda: scene.ready(3), "not ready")
            relay.bytes_per_s = SLOW_BYTES_PER_S
            before_s = scene.recovery_s("two")
            moved_before, _ = transfers(scene.workers["one"])[-1]
            relay.bytes_per_s = None
            scene.start("two")
            wait_for(lambda: scene.ready(3), "not ready again")
            wait_for(lambda: scene.is_ahead("two"), "nothing was fetched ahead of time")
            relay.bytes_per_s = SLOW_BYTES_PER_S
            after_s = scene.recovery_s("one")
            moved_after, kept_after = transfers(scene.workers["two"])[-1]
            assert answer(scene.head.api_url) == expected
        print(f"recovery at 1 MiB/s: {before_s:.1f} s with {moved_before} MiB to fetch, {after_s:.1f} s with them here")
        assert moved_before > 1
        assert moved_after == 0 and kept_after > 1
        assert "layers are here ahead of time" in scene.workers["two"].output
    finally:
        scene.stop()
