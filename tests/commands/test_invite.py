from __future__ import annotations

import asyncio
import json
from pathlib import Path

from tests.helpers.scripted_server import TOKEN, FixedAdmin, serving
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


async def test_a_token_goes_to_stdout_alone(tmp_path: Path) -> None:
    async with serving() as server:
        ran = await run_verb(tmp_path, "invite", "--token", VRM_URL=server.url)
        data = await run_verb(tmp_path, "invite", "--token", "--reusable", "--hours", "2", "--json", VRM_URL=server.url)
    assert (ran.code, ran.out, ran.err) == (0, f"{TOKEN}\n", "")
    assert json.loads(data.out) == {"token": TOKEN, "id": "1a2b3c4d", "valid_s": 7200.0, "reusable": True}


async def test_on_a_terminal_a_token_comes_with_what_it_is_good_for(tmp_path: Path) -> None:
    arguments = ("invite", "--token", "--reusable")
    async with serving() as server, async_terminal(tmp_path, *arguments, VRM_URL=server.url) as shown:
        await asyncio.to_thread(shown.see, "For any number of machines, valid for")
        await asyncio.to_thread(shown.see, "VRM_JOIN_TOKEN")
        assert await asyncio.to_thread(shown.end) == 0


async def test_the_flags_of_a_token_belong_to_a_token(tmp_path: Path) -> None:
    for flags in (["--reusable"], ["--hours", "2"]):
        ran = await run_verb(tmp_path, "invite", *flags)
        assert ran.code == 2
        assert "--token" in ran.err


async def test_only_the_head_makes_tokens(tmp_path: Path) -> None:
    async with serving(admin=FixedAdmin(head=False)) as server:
        ran = await run_verb(tmp_path, "invite", "--token", VRM_URL=server.url)
    assert (ran.code, ran.out) == (2, "")
    assert ran.error_lines == ["error: Only the head of the cluster can invite."]
