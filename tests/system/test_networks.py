"""Real nodes on networks that are slow, lossy, one-sided, silent, or lie about bytes, in the middle of answers.

One worker reaches the head through a proxy that hurts what passes, another one over a wire of its own, by IPv6 alone.
Each can be spared. Grade of sameness: identical.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from build_scripts.local_cluster import LocalCluster, local_cluster
from tests.helpers.fault_proxy import FaultProxy, Faults, fault_proxy
from tests.helpers.namespaces import NEEDS, Wire, can_make_them, wire
from tests.helpers.streams import Asked, Question, ask
from tests.system.conftest import made_whole

pytestmark = [pytest.mark.faults, pytest.mark.skipif(not can_make_them(), reason=NEEDS)]

MEMORY = "32MiB"
"""Two such nodes hold the built-in model; three share it."""
QUESTION = Question("Tell me about layers", 90)
SEEDED = Question("How do I join", 90, temperature=0.9, seed=7)
SILENCE_S = 3.2
"""Three heartbeats, and the look that follows them."""


@dataclass
class Scene:
    cluster: LocalCluster
    proxy: FaultProxy
    wire: Wire
    texts: dict[Question, str]

    def under_way(self) -> list[Asked]:
        asked = [Asked(self.cluster.head.api_url, question) for question in self.texts]
        for one in asked:
            one.wait_for_pieces(5)
        return asked

    def told(self, asked: list[Asked]) -> None:
        for one in asked:
            one.join(120)
            assert (one.error, one.error_message) == (None, "")
            assert one.text == self.texts[one.question]


@pytest.fixture(scope="module")
def scene_of_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("networks")
    with wire(1, ipv6=True) as cable, local_cluster(folder, memory=MEMORY) as cluster:
        cluster.start_head()
        port = cluster.head.node_port
        with fault_proxy(port, seed=7) as proxy:
            cluster.workers.append(cluster.new_worker("wired", at=f"[{cable.near}]:{port}", inside=cable.inside))
            cluster.workers.append(cluster.new_worker("proxied", at=f"127.0.0.1:{proxy.port}"))
            cluster.wait_ready(3)
            texts = {question: ask(cluster.head.api_url, question) for question in (QUESTION, SEEDED)}
            yield Scene(cluster, proxy, cable, texts)


@pytest.fixture
def scene(scene_of_three: Scene) -> Iterator[Scene]:
    """Whole again before each; a node that was quarantined or lost is waited for."""
    with made_whole(scene_of_three.cluster):
        yield scene_of_three
        scene_of_three.proxy.healed()


def test_a_node_without_ipv4_computes_its_part(scene: Scene) -> None:
    status = scene.cluster.client.status(fresh=True)
    wired = next(node for node in status.nodes if node.name == "wired")
    assert wired.address.startswith(f"[{scene.wire.far}]:")
    assert wired.layers is not None
    assert wired.layer_tokens > 0


@pytest.mark.parametrize(
    "faults",
    [
        Faults(bytes_per_s=1.25e6),
        Faults(delay_s=0.02, jitter_s=0.03),
        Faults(loss=0.05),
        Faults(slice_bytes=1),
    ],
    ids=["10 Mbit/s", "delay and jitter", "loss", "one byte at a time"],
)
def test_a_bad_network_costs_time_and_no_node(scene: Scene, faults: Faults) -> None:
    epoch = scene.cluster.client.status().epoch
    scene.proxy.there = scene.proxy.back = faults
    scene.told(scene.under_way())
    assert scene.cluster.client.status().epoch == epoch


@pytest.mark.parametrize(
    "hurt",
    [
        lambda proxy: setattr(proxy, "there", Faults(cut_after_bytes=100)),
        lambda proxy: setattr(proxy, "there", Faults(flip=1.0)),
        lambda proxy: setattr(proxy, "back", Faults(flip=1.0)),
        lambda proxy: proxy.half_open(),
        lambda proxy: setattr(proxy, "there", Faults(hole=True)),
        lambda proxy: setattr(proxy, "there", Faults(stalled=True)),
        lambda proxy: proxy.cut(),
    ],
    ids=["cut in a frame", "flipped to the head", "flipped from the head", "half-open", "hole", "stalled", "cut"],
)
def test_a_link_that_breaks_in_the_middle_of_answers_changes_no_text(scene: Scene, hurt) -> None:
    asked = scene.under_way()
    hurt(scene.proxy)
    time.sleep(0.5)
    scene.told(asked)
    assert max(one.longest_pause_s for one in asked) < SILENCE_S + 5
    scene.proxy.cut()


def test_a_neighbour_that_is_no_more_where_it_was_is_missed_within_three_seconds(scene: Scene) -> None:
    asked = scene.under_way()
    scene.wire.poison()
    try:
        scene.told(asked)
        assert max(one.longest_pause_s for one in asked) < SILENCE_S + 5
        lost = next(node for node in scene.cluster.client.status().nodes if node.name == "wired")
        assert lost.state == "lost"
        assert "silent for 3." in lost.why or "the worker left" in lost.why, "it found the head silent, or the head it"
    finally:
        scene.wire.cure()


def test_a_cluster_is_found_where_no_multicast_passes(tmp_path: Path) -> None:
    find = "import asyncio; from transport import discovery; print(asyncio.run(discovery.find(4)))"
    with wire(2, multicast=False) as cable, local_cluster(tmp_path) as cluster:
        cluster.start_head()
        run = subprocess.run(
            [*cable.inside, sys.executable, "-c", find], capture_output=True, text=True, timeout=60, check=True
        )
        assert f"'{cable.near}', port={cluster.head.node_port}" in run.stdout
