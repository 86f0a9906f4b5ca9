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
