from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from aiohttp import ClientSession

from tests.helpers.scripted_server import TOKEN, FixedAdmin, ScriptedDeployment, cluster_status, serving
from vramancer_cli.cluster.status import ClusterStatus


async def test_liveness_and_health_say_ok_even_when_nothing_is_ready() -> None:
    admin = FixedAdmin(replace(cluster_status(), state="waiting", reason="One more machine is needed."))
    async with serving(admin=admin) as server, ClientSession(server.url) as http:
        for path in ("/live", "/health"):
            async with http.get(path) as reply:
                assert (reply.status, await reply.json()) == (200, {"status": "ok"})
        async with http.get("/ready") as reply:
            assert reply.status == 503 and int(reply.headers["Retry-After"]) > 0
            assert (await reply.json())["error"]["message"] == "One more machine is needed."


async def test_ready_names_the_model(folder: Path) -> None:
    async with serving(ScriptedDeployment(folder)) as server, ClientSession(server.url) as http:
        async with http.get("/ready") as reply:
            assert (reply.status, await reply.json()) == (200, {"status": "ready", "model": "scripted"})


async def test_nodes_are_asked_afresh() -> None:
    admin = FixedAdmin()
    async with serving(admin=admin) as server, ClientSession(server.url) as http:
        async with http.get("/api/nodes") as reply:
            data = (await reply.json())["data"]
    assert [node["layers"] for node in data] == [[0, 3], [3, 5], [5, 8]]
    assert admin.fresh_asked == 1 and data[0]["layer_tokens"] == 10


async def test_the_pipelines_status_survives_the_journey() -> None:
    admin = FixedAdmin()
    async with serving(admin=admin) as server, ClientSession(server.url) as http:
        async with http.get("/api/pipeline/status") as reply:
            assert ClusterStatus.from_json(await reply.json()) == cluster_status()
        assert admin.fresh_asked == 0
        async with http.get("/api/pipeline/status?fresh=true") as reply:
            assert ClusterStatus.from_json(await reply.json()).nodes[0].layer_tokens == 10


async def test_an_invitation_and_who_may_not_give_one() -> None:
    async with serving() as server, ClientSession(server.url) as http, http.post("/api/invites") as reply:
        assert (reply.status, await reply.json()) == (201, {"code": "4-otter-maple-drum", "valid_s": 600.0})
    async with serving(admin=FixedAdmin(head=False)) as server, ClientSession(server.url) as http:
        async with http.post("/api/invites") as reply:
            assert reply.status == 409
            assert "head" in (await reply.json())["error"]["message"]


async def test_a_token_for_scripts() -> None:
    async with serving() as server, ClientSession(server.url) as http:
        async with http.post("/api/tokens", json={"reusable": True, "hours": 2}) as reply:
            assert (reply.status, (await reply.json())["valid_s"]) == (201, 7200.0)
        async with http.post("/api/tokens") as reply:
            assert (reply.status, await reply.json()) == (
                201, {"token": TOKEN, "id": "1a2b3c4d", "valid_s": 86400.0, "reusable": False}
            )  # fmt: skip
        for wrong in (b"[]", b"{", b'{"hours": "2"}', b'{"hours": true}', b'{"reusable": 1}', b"\xff"):
            async with http.post("/api/tokens", data=wrong) as reply:
                assert reply.status == 400, wrong
    async with serving(admin=FixedAdmin(head=False)) as server, ClientSession(server.url) as http:
        async with http.post("/api/tokens") as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (409, "no_token")


async def test_a_node_is_removed() -> None:
    admin = FixedAdmin()
    async with serving(admin=admin) as server, ClientSession(server.url) as http:
        async with http.delete("/api/nodes/old-laptop") as reply:
            assert reply.status == 200
            assert admin.removed == [(await reply.json())["id"]]
        async with http.delete("/api/nodes/nobody") as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (409, "not_removed")


async def test_a_node_is_drained() -> None:
    admin = FixedAdmin()
    async with serving(admin=admin) as server, ClientSession(server.url) as http:
        async with http.post("/api/nodes/old-laptop/drain") as reply:
            assert reply.status == 200
            assert admin.drained == [(await reply.json())["id"]]
        async with http.post("/api/nodes/nobody/drain") as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (409, "not_drained")
        head = next(node for node in admin.current.nodes if node.role == "head")
        async with http.post(f"/api/nodes/{head.id}/drain") as reply:
            assert reply.status == 409
            assert "2.0 GiB more would do" in (await reply.json())["error"]["message"]
