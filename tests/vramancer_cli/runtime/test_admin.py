from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from tests.helpers.cluster import make_credentials
from tests.helpers.pipeline_bench import SMALL
from tests.helpers.simulated_cluster import SimulatedCluster, node_id
from tests.helpers.virtual_time import run
from transport.errors import RemovedError
from transport.identity import ClusterAuthority
from transport.pairing import PairingDesk
from transport.tokens import parse_token
from vramancer_cli.cluster.status import ClusterStatus
from vramancer_cli.errors import NotReadyError, UsageError
from vramancer_cli.runtime.admin import HeadAdmin, WorkerAdmin
from vramancer_cli.runtime.contracts import Admin
from vramancer_cli.runtime.coordinator import Coordinator
from vramancer_cli.runtime.generation import Generation
from vramancer_cli.runtime.registrar import Registrar

Scene = Callable[[SimulatedCluster, HeadAdmin, PairingDesk], Coroutine[Any, Any, None]]


def play(scene: Scene) -> None:
    async def main() -> None:
        async with SimulatedCluster(SMALL) as cluster:
            desk = PairingDesk()
            credentials = make_credentials(ClusterAuthority.create("otter-cove", time.time()), "desk")
            yet_to_come = HeadAdmin(cluster.coordinator, cluster.generation, desk, credentials)
            yet_to_come.api_url = "http://127.0.0.1:5000"
            await scene(cluster, yet_to_come, desk)

    run(main())


def test_the_head_knows_everything() -> None:
    async def scene(cluster: SimulatedCluster, admin: HeadAdmin, _: PairingDesk) -> None:
        status = await admin.status()
        assert (status.cluster, status.state, status.model) == ("otter-cove", "waiting", "arithmetic")
        cluster.join(1, SMALL)
        cluster.join(2, SMALL)
        await cluster.ready(3)
        running = [asyncio.create_task(cluster.ask([1, 2], 50)) for _ in range(20)]
        await asyncio.sleep(2.0)
        status = await admin.status(fresh=True)
        assert (status.state, status.reason, status.epoch) == ("ready", "", 1)
        assert (status.running, status.waiting) == (cluster.generation.running, cluster.generation.waiting)
        assert status.running > 0
        assert status.tokens_per_s > 1
        assert status.uptime_s == pytest.approx(asyncio.get_running_loop().time())
        assert status.api_url == "http://127.0.0.1:5000"
        assert [(node.name, node.layers) for node in status.nodes] == [
            ("node-0", (0, 2)), ("node-1", (2, 4)), ("node-2", (4, 6))
        ]  # fmt: skip
        assert all(node.memory_used_bytes > 0 and node.layer_tokens > 0 for node in status.nodes)
        await asyncio.gather(*running)

    play(scene)


def test_what_is_shared_reads_back_as_the_same_status() -> None:
    async def scene(cluster: SimulatedCluster, admin: HeadAdmin, _: PairingDesk) -> None:
        cluster.join(1, SMALL)
        await asyncio.sleep(1)
        assert ClusterStatus.from_json(json.loads(admin.share())) == await admin.status()

    play(scene)


def test_an_invitation_is_a_code_that_the_desk_takes() -> None:
    async def scene(_: SimulatedCluster, admin: HeadAdmin, desk: PairingDesk) -> None:
        before = desk.open_codes(time.time())
        invitation = await admin.invite()
        assert desk.open_codes(time.time()) == before + 1
        slot = int(invitation.code.partition("-")[0])
        assert desk.code_at(slot, time.time()) == invitation.code
        assert desk.code_at(slot, time.time() + invitation.valid_s + 1) is None
        assert (await admin.invite()).code != invitation.code

    play(scene)


def test_a_token_is_one_of_the_registrars() -> None:
    authority = ClusterAuthority.create("otter-cove", time.time())
    registrar = Registrar(authority=authority)

    async def main() -> None:
        admin = HeadAdmin(
            cast(Coordinator, None), cast(Generation, None), PairingDesk(), make_credentials(authority, "x"), registrar
        )
        made = await admin.make_token(reusable=True, hours=2)
        assert (made.valid_s, made.reusable, made.id) == (7200.0, True, registrar.tokens[0].id)
        assert registrar.redeem(parse_token(made.token).secret, "e" * 32, time.time())
        assert made.token not in repr(made)

    asyncio.run(main())


def test_a_worker_knows_what_the_head_last_shared() -> None:
    async def scene(cluster: SimulatedCluster, head: HeadAdmin, _: PairingDesk) -> None:
        worker = cluster.join(1, SMALL).worker
        admin: Admin = WorkerAdmin(worker, "otter-cove")
        with pytest.raises(NotReadyError, match="otter-cove"):
            await admin.status()
        await asyncio.sleep(2.5)
        worker.status = head.share()
        assert await admin.status(fresh=True) == await head.status()
        with pytest.raises(UsageError, match="Only the master"):
            await admin.invite()
        with pytest.raises(UsageError, match="Only the master"):
            await admin.make_token(reusable=False, hours=1)
        with pytest.raises(UsageError, match="Only the master"):
            await admin.remove("node-1")

    play(scene)


def test_the_head_removes_a_node() -> None:
    async def scene(cluster: SimulatedCluster, admin: HeadAdmin, _: PairingDesk) -> None:
        worker = cluster.join(1, SMALL)
        await asyncio.sleep(1)
        assert await admin.remove("node-1") == node_id(1)
        with pytest.raises(RemovedError):
            await worker.task
        [node] = [node for node in (await admin.status()).nodes if node.name == "node-1"]
        assert node.state == "lost"

    play(scene)
