from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.boards import CLUSTER
from tests.helpers.scripted_server import FixedAdmin, serving
from tests.helpers.verbs import run_verb


async def test_each_node_in_full(tmp_path: Path) -> None:
    async with serving(admin=FixedAdmin(CLUSTER)) as server:
        shown = await run_verb(tmp_path, "nodes", VRM_URL=server.url)
        data = await run_verb(tmp_path, "nodes", "--json", VRM_URL=server.url)
    assert shown.code == data.code == 0
    for node, read in zip(CLUSTER.nodes, json.loads(data.out), strict=True):
        assert node.id in shown.out
        assert (read["name"], read["address"], read["why"]) == (node.name, node.address, node.why)


async def test_one_is_removed_by_name_or_id(tmp_path: Path) -> None:
    admin = FixedAdmin(CLUSTER)
    first, second = CLUSTER.nodes[0], CLUSTER.nodes[1]
    async with serving(admin=admin) as server:
        told = await run_verb(tmp_path, "nodes", "remove", first.name, VRM_URL=server.url)
        data = await run_verb(tmp_path, "nodes", "remove", second.id, "--json", VRM_URL=server.url)
    assert (told.code, told.out) == (0, "")
    assert told.err.strip() == f"Removed {first.name} ({first.id[:8]})."
    assert json.loads(data.out) == {"id": second.id, "removed": True}
    assert admin.removed == [first.id, second.id]


async def test_a_name_that_nobody_has_is_2(tmp_path: Path) -> None:
    admin = FixedAdmin(CLUSTER)
    async with serving(admin=admin) as server:
        ran = await run_verb(tmp_path, "nodes", "remove", "../v1/models?x=1#é", VRM_URL=server.url)
    assert ran.code == 2
    assert ran.error_lines == ["error: No node is called '../v1/models?x=1#é'."]
    assert not admin.removed


async def test_its_help_says_what_it_does(tmp_path: Path) -> None:
    ran = await run_verb(tmp_path, "nodes", "remove", "--help")
    assert ran.code == 0
    assert "cut within a second" in ran.out
