from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.scripted_server import FixedAdmin, serving
from tests.helpers.verbs import run_verb
from tests.vramancer_cli.telemetry.test_trace_events import check_trace_file
from vramancer_cli.telemetry.cluster_trace import ClusterTrace, NodeTrace

LAST_STEPS = "▒" * 20


async def test_the_table_and_a_line_for_each_stage(tmp_path: Path) -> None:
    async with serving() as server:
        ran = await run_verb(tmp_path, "trace", VRM_URL=server.url, COLUMNS="120")
    assert (ran.code, ran.err) == (0, "")
    head, first, second, sentence = ran.out.splitlines()[:4]
    assert head.split()[:3] == ["stage", "busy", "ends"]
    assert first.startswith("0 attic [0, 4)") and second.startswith("1 cellar [4, 8)")
    assert "86%" in first and "76%" in second
    assert sentence.startswith("20 steps in 0.21 s, one every 10.5 ms; scheduling took 1.00 ms of each")
    lines = [line for line in ran.out.splitlines() if line.startswith("stage ")][1:]
    assert len(lines) == 2 and all(LAST_STEPS[:4] in line and "·" in line for line in lines)


async def test_the_file_opens_in_perfetto(tmp_path: Path) -> None:
    async with serving() as server:
        ran = await run_verb(tmp_path, "trace", "--out", str(tmp_path / "t.json"), VRM_URL=server.url)
    assert ran.code == 0 and "ui.perfetto.dev" in ran.err
    assert check_trace_file(json.loads((tmp_path / "t.json").read_text()))


async def test_json_has_the_shares(tmp_path: Path) -> None:
    async with serving() as server:
        ran = await run_verb(tmp_path, "trace", "--seconds", "2.5", "--json", VRM_URL=server.url)
    told = json.loads(ran.out)
    assert [round(stage["busy"], 2) for stage in told["stages"]] == [0.86, 0.76]
    assert told["clock_error_s"] == {"attic": 0.0, "cellar": 0.0002}


async def test_nothing_that_ran_and_a_node_that_told_nothing_are_said(tmp_path: Path) -> None:
    whole = FixedAdmin().traced
    silent = ClusterTrace(5.0, whole.stages, (whole.nodes[0], NodeTrace(whole.nodes[1].id, "cellar", None)))
    async with serving(admin=FixedAdmin(traced=silent)) as server:
        partly = await run_verb(tmp_path, "trace", VRM_URL=server.url)
    async with serving(admin=FixedAdmin(traced=ClusterTrace(5.0, whole.stages, ()))) as server:
        idle = await run_verb(tmp_path, "trace", VRM_URL=server.url)
    assert partly.code == 0 and "cellar told nothing" in partly.err
    assert idle.code == 3 or idle.code > 0
    assert "Nothing ran in the last 5 s." in idle.err


@pytest.mark.parametrize("seconds", ["0", "-1", "61", "nan", "five"])
async def test_wrong_seconds_are_refused_before_anybody_is_asked(tmp_path: Path, seconds: str) -> None:
    ran = await run_verb(tmp_path, "trace", f"--seconds={seconds}")
    assert ran.code == 2 and "is no number of seconds" in ran.err


async def test_a_file_that_cannot_be_written_and_a_worker_are_told(tmp_path: Path) -> None:
    async with serving(admin=FixedAdmin(head=False)) as server:
        worker = await run_verb(tmp_path, "trace", VRM_URL=server.url)
    async with serving() as server:
        ran = await run_verb(tmp_path, "trace", "--out", str(tmp_path), VRM_URL=server.url)
    assert (worker.code, ran.code) == (2, 2)
    assert "Only the head" in worker.err and "cannot be written" in ran.err
