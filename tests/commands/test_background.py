from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from commands import background
from commands.background import BackgroundError, own_command
from tests.helpers.api_trust import authority, certificate_of
from tests.helpers.scripted_server import serving
from tests.helpers.verbs import run_verb
from vramancer_cli.runtime import run_file

FREE_PORTS = ["--port", "0", "--node-port", "0"]


def test_the_command_again_without_detach(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["start", "--master", "--detach", "--port", "0"]
    own = [sys.executable, "-m", "vramancer_cli"]
    assert own_command(arguments) == [*own, "start", "--master", "--port", "0"]
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    assert own_command(arguments) == [sys.executable, "start", "--master", "--port", "0"]


async def test_detached_it_answers_before_the_verb_returns_and_stops(tmp_path: Path) -> None:
    started = await run_verb(tmp_path, "start", "--master", "--detach", *FREE_PORTS)
    try:
        assert started.code == 0, started.err
        record = run_file.running(tmp_path)
        assert record is not None
        assert f"{record.api_url} (pid {record.pid})" in started.out
        assert background.is_live(record.api_url)
        process = psutil.Process(record.pid)
        assert os.getsid(record.pid) == record.pid, "a terminal that closes does not end it"
        log = tmp_path / background.LOG_FILE
        assert stat.S_IMODE(log.stat().st_mode) == 0o600
        assert "--code" in log.read_text()
    finally:
        stopped = await run_verb(tmp_path, "stop")
    assert stopped.code == 0
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def test_what_it_died_of_is_the_error(tmp_path: Path) -> None:
    ran = await run_verb(tmp_path, "start", "--master", "--model", str(tmp_path / "nothing"), "--detach", *FREE_PORTS)
    assert ran.code == 1
    assert "nothing" in ran.err
    assert background.LOG_FILE in ran.err
    assert "Traceback" not in ran.err
    assert run_file.running(tmp_path) is None


def test_one_that_never_answers_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = "import time; time.sleep(60)"
    monkeypatch.setattr(background, "own_command", lambda _arguments: [sys.executable, "-c", sleeper])
    monkeypatch.setattr(background, "DEADLINE_S", 0.5)
    launched: list[subprocess.Popen[bytes]] = []
    launch = background._launch
    monkeypatch.setattr(background, "_launch", lambda *args: launched.append(launch(*args)) or launched[0])
    with pytest.raises(BackgroundError, match="did not answer within"):
        background.start_and_tell(tmp_path, ["start"])
    assert launched[0].wait(10) == -15


async def test_an_https_server_is_seen_to_answer_although_this_system_does_not_know_its_authority() -> None:
    async with serving(certificate=certificate_of(authority())) as server:
        assert await asyncio.to_thread(background.is_live, f"https://127.0.0.1:{server.port}")
    assert not await asyncio.to_thread(background.is_live, f"https://127.0.0.1:{server.port}")
    async with serving() as server:
        assert not await asyncio.to_thread(background.is_live, f"https://127.0.0.1:{server.port}"), "no TLS there"
