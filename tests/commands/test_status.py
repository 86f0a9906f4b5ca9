from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.helpers.boards import CLUSTER
from tests.helpers.scripted_server import FixedAdmin, serving
from tests.helpers.verbs import PROGRAM, InProcess, async_terminal, environment, run_verb
from vramancer_cli.cluster.status import ClusterStatus
from vramancer_cli.runtime import run_file
from vramancer_cli.runtime.run_file import RunRecord
from vramancer_cli.serving.settings import ServerSettings


async def test_into_a_pipe_it_is_plain_text_of_80_columns(tmp_path: Path) -> None:
    async with serving(admin=FixedAdmin(CLUSTER)) as server:
        ran = await run_verb(tmp_path, "status", "--url", server.url)
    assert (ran.code, ran.err) == (0, "")
    assert "\x1b" not in ran.out
    lines = ran.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert all(line == line.rstrip() for line in lines)
    for node in CLUSTER.nodes:
        assert node.name in ran.out


async def test_on_a_windows_pipe_nothing_breaks(tmp_path: Path) -> None:
    named = replace(CLUSTER, cluster="日本", nodes=CLUSTER.nodes[:3])
    async with serving(admin=FixedAdmin(named)) as server:
        process = await asyncio.create_subprocess_exec(
            *PROGRAM, "status", "--url", server.url,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=environment(tmp_path, PYTHONIOENCODING="cp1252"),
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, err) == (0, b"")
    assert b"######" in out


async def test_json_is_the_whole_status(tmp_path: Path) -> None:
    async with serving(admin=FixedAdmin(CLUSTER)) as server:
        ran = await run_verb(tmp_path, "status", "--json", VRM_URL=server.url)
    shown = ClusterStatus.from_json(json.loads(ran.out))
    assert [n.name for n in shown.nodes] == [n.name for n in CLUSTER.nodes]
    assert shown.nodes[0].layer_tokens == CLUSTER.nodes[0].layer_tokens + 10, "it asks every node afresh"


async def test_the_node_that_runs_here_is_found_by_its_run_file(tmp_path: Path) -> None:
    async with serving() as server:
        run_file.write(tmp_path, RunRecord.of_this_process(server.url, 5001, "head"))
        ran = await run_verb(tmp_path, "status", "--json")
    assert json.loads(ran.out)["cluster"] == "attic"


async def test_a_run_file_of_the_dead_is_not_followed(tmp_path: Path) -> None:
    record = RunRecord(os.getpid(), psutil.Process().create_time() - 1000, "http://127.0.0.1:9", 5001, "head")
    run_file.write(tmp_path, record)
    ran = await run_verb(tmp_path, "status")
    assert "127.0.0.1:9." not in ran.err


@pytest.mark.parametrize("verb", [["status"], ["status", "--watch"], ["nodes"], ["invite"], ["chat", "hello"]])
def test_nothing_there_is_one_line_and_3(
    verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = InProcess(tmp_path, monkeypatch, capsys)(*verb, "--url", "http://127.0.0.1:1")
    assert (ran.code, ran.out) == (3, "")
    assert ran.error_lines == [
        "error: No VRAMancer answers at http://127.0.0.1:1. "
        "Start one with 'vramancer start --master', or name another with --url."
    ]


async def test_a_token_opens_and_is_never_shown(tmp_path: Path) -> None:
    settings = ServerSettings(api_token="s3cret", close_s=0.2)
    async with serving(settings=settings) as server:
        closed = await run_verb(tmp_path, "status", VRM_URL=server.url, VRM_API_TOKEN="wr0ng")
        opened = await run_verb(tmp_path, "status", VRM_URL=server.url, VRM_API_TOKEN="s3cret")
    assert closed.code == 2
    assert "VRM_API_TOKEN" in closed.err
    assert opened.code == 0
    for ran in (closed, opened):
        assert "s3cret" not in ran.out + ran.err
        assert "wr0ng" not in ran.out + ran.err


async def test_watching_into_a_pipe_writes_a_line_of_json_a_second(tmp_path: Path) -> None:
    async with serving() as server:
        process = await asyncio.create_subprocess_exec(
            *PROGRAM, "status", "--watch", "--json", stdout=asyncio.subprocess.PIPE,
            env=environment(tmp_path, VRM_URL=server.url),
        )  # fmt: skip
        assert process.stdout is not None
        lines = [json.loads(await asyncio.wait_for(process.stdout.readline(), 10)) for _ in range(2)]
        process.terminate()
        await asyncio.wait_for(process.wait(), 10)
    assert lines[1]["nodes"][0]["layer_tokens"] == lines[0]["nodes"][0]["layer_tokens"] + 10


async def test_watching_outlives_the_server_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    async with async_terminal(tmp_path, "status", "--watch") as quiet:
        assert await asyncio.to_thread(quiet.end) == 3
    server_open = serving(admin=FixedAdmin(CLUSTER))
    server = await server_open.__aenter__()
    async with async_terminal(tmp_path, "status", "--watch", VRM_URL=server.url) as watching:
        await asyncio.to_thread(watching.see, "otter-cove")
        await server_open.__aexit__(None, None, None)
        await asyncio.to_thread(watching.see, "No answer for")
        watching.interrupt()
        assert await asyncio.to_thread(watching.end) == 0
