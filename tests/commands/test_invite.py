from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.helpers.scripted_server import FixedAdmin, serving
from tests.helpers.verbs import async_terminal, run_verb


async def test_into_a_pipe_it_is_the_code_alone(tmp_path: Path) -> None:
    async with serving() as server:
        ran = await run_verb(tmp_path, "invite", VRM_URL=server.url)
        data = await run_verb(tmp_path, "invite", "--json", VRM_URL=server.url)
    assert (ran.code, ran.out, ran.err) == (0, "4-otter-maple-drum\n", "")
    assert json.loads(data.out) == {"code": "4-otter-maple-drum", "valid_s": 600.0}


async def test_on_a_terminal_it_comes_with_the_command_to_copy(tmp_path: Path) -> None:
    async with serving() as server, async_terminal(tmp_path, "invite", VRM_URL=server.url) as shown:
        await asyncio.to_thread(shown.see, "valid for 10 min")
        await asyncio.to_thread(shown.see, "vramancer join --auto-discover --code 4-otter-maple-drum")
        assert await asyncio.to_thread(shown.end) == 0


async def test_only_the_head_invites(tmp_path: Path) -> None:
    async with serving(admin=FixedAdmin(head=False)) as server:
        ran = await run_verb(tmp_path, "invite", VRM_URL=server.url)
    assert ran.code == 2
    assert ran.error_lines == ["error: Only the head of the cluster can invite."]
