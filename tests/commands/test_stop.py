from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from commands import stop as stop_verb
from commands.app import app
from tests.helpers.verbs import run_verb
from vramancer_cli.runtime import run_file
from vramancer_cli.runtime.run_file import RunRecord

POLITE = "import time; print('up', flush=True); time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def record_of(pid: int, create_time_s: float | None = None) -> RunRecord:
    return RunRecord(pid, create_time_s or psutil.Process(pid).create_time(), "http://127.0.0.1:5000", 5001, "head")


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def sleeper(sleepers: list[subprocess.Popen[bytes]], program: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    sleepers.append(process)
    assert process.stdout is not None
    process.stdout.readline()
    return process


async def test_the_running_node_ends_and_its_run_file_goes(
    tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    process = sleeper(sleepers, POLITE)
    run_file.write(tmp_path, record_of(process.pid))
    ran = await run_verb(tmp_path, "stop")
    assert (ran.code, ran.out) == (0, f"pid {process.pid} (http://127.0.0.1:5000): stopped\n")
    assert process.wait(5) == -15, "asked, not killed"
    assert not (tmp_path / "run.json").exists()


def test_one_that_does_not_listen_is_killed(
    tmp_path: Path, sleepers: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_verb, "POLITE_S", 0.3)
    process = sleeper(sleepers, DEAF)
    run_file.write(tmp_path, record_of(process.pid))
    began = time.monotonic()
    result = CliRunner().invoke(app, ["stop", "--state-dir", str(tmp_path)])
    assert time.monotonic() - began >= 0.3
    assert result.exit_code == 0
    assert "killed" in result.output
    assert process.wait(5) == -9


async def test_a_reused_pid_is_left_alone(tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]) -> None:
    process = sleeper(sleepers, POLITE)
    run_file.write(tmp_path, record_of(process.pid, psutil.Process(process.pid).create_time() - 60))
    ran = await run_verb(tmp_path, "stop")
    assert ran.code == 3
    assert len(ran.error_lines) == 1
    assert process.poll() is None


async def test_nothing_to_stop(tmp_path: Path) -> None:
    ran = await run_verb(tmp_path, "stop")
    assert ran.code == 3
    assert str(tmp_path) in ran.err
    assert "vramancer start --master" not in ran.err
