from __future__ import annotations

import json
from pathlib import Path

from tests.helpers.boards import CLUSTER
from tests.helpers.scripted_server import FixedAdmin, serving
from tests.helpers.verbs import run_verb

WORKER = next(node for node in CLUSTER.nodes if node.role == "worker")
HEAD = next(node for node in CLUSTER.nodes if node.role == "head")


async def test_one_is_drained_by_name_or_id(tmp_path: Path) -> None:
    admin = FixedAdmin(CLUSTER)
    async with serving(admin=admin) as server:
        told = await run_verb(tmp_path, "drain", WORKER.name, VRM_URL=server.url)
        data = await run_verb(tmp_path, "drain", WORKER.id, "--json", VRM_URL=server.url)
    assert (told.code, told.out) == (0, "")
    assert told.err.splitlines()[-1] == f"{WORKER.name} ({WORKER.id[:8]}) holds nothing now."
    assert json.loads(data.out) == {"id": WORKER.id, "drained": True}
    assert admin.drained == [WORKER.id, WORKER.id]


async def test_one_that_cannot_be_spared_is_refused_with_what_is_missing(tmp_path: Path) -> None:
    async with serving(admin=FixedAdmin(CLUSTER)) as server:
        ran = await run_verb(tmp_path, "drain", HEAD.name, VRM_URL=server.url)
    assert ran.code == 2
    assert "GiB more would do" in ran.err


async def test_its_help_says_what_it_does(tmp_path: Path) -> None:
    ran = await run_verb(tmp_path, "drain", "--help")
    assert ran.code == 0
    assert "requests go on" in ran.out
