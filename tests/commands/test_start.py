from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.helpers.verbs import async_terminal, run_verb
from vramancer_cli.runtime import enrolment, run_file
from vramancer_cli.runtime.run_file import RunRecord
from vramancer_cli.runtime.state_folder import StateFolder


@pytest.fixture
def worker_folder(tmp_path: Path) -> StateFolder:
    """A folder that joined a cluster."""
    head, _ = enrolment.found_cluster("tower", StateFolder(tmp_path / "head"), time.time())
    folder = StateFolder(tmp_path / "worker")
    folder.save_credentials(head)
    return folder


async def test_a_machine_of_no_cluster_is_told_what_to_do(tmp_path: Path) -> None:
    ran = await run_verb(tmp_path, "start")
    assert ran.code == 2
    assert len(ran.error_lines) == 1
    assert "vramancer start --master" in ran.err
    assert "vramancer join" in ran.err
    assert list(tmp_path.iterdir()) == []


async def test_an_api_open_to_other_machines_needs_a_token_before_anything_is_made(tmp_path: Path) -> None:
    ran = await run_verb(tmp_path, "start", "--master", "--host", "0.0.0.0")
    assert ran.code == 2
    assert len(ran.error_lines) == 1
    assert "VRM_API_TOKEN" in ran.err
    assert list(tmp_path.iterdir()) == []


async def test_a_worker_has_no_model_of_its_own(worker_folder: StateFolder) -> None:
    ran = await run_verb(worker_folder.path, "start", "--model", "x")
    assert ran.code == 2
    assert "--model" in ran.err


async def test_a_workers_folder_founds_no_cluster(worker_folder: StateFolder) -> None:
    ran = await run_verb(worker_folder.path, "start", "--master", "--port", "0", "--node-port", "0")
    assert ran.code == 2
    assert "tower" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    "verb", [["start", "--master"], ["start", "--detach"], ["join", "desk", "--code", "4-otter-maple-drum"]]
)
async def test_one_folder_runs_one_node(verb: list[str], tmp_path: Path) -> None:
    enrolment.found_cluster("tower", StateFolder(tmp_path), time.time())
    run_file.write(tmp_path, RunRecord.of_this_process("http://127.0.0.1:7000", 7001, "head"))
    ran = await run_verb(tmp_path, *verb)
    assert ran.code == 1
    assert ran.error_lines == [
        f"error: A node already runs out of {tmp_path}: pid {os.getpid()}, http://127.0.0.1:7000. "
        "Stop it with 'vramancer stop', or name another folder with --state-dir."
    ]


async def test_a_master_starts_says_how_to_join_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    import asyncio

    arguments = ["start", "--master", "--port", "0", "--node-port", "0", "--name", "desk"]
    async with async_terminal(tmp_path, *arguments) as node:
        await asyncio.to_thread(node.see, "loading torch")
        seen = await asyncio.to_thread(node.see, "Ctrl-C", 60)
        record = run_file.read(tmp_path)
        assert record is not None
        assert record.api_url in seen
        assert f"(node port {record.node_port})" in seen
        assert "vramancer join --auto-discover --code " in seen
        assert f":{record.node_port} --code " in seen
        node.interrupt()
        assert await asyncio.to_thread(node.end) in (0, 130)
    assert run_file.read(tmp_path) is None
