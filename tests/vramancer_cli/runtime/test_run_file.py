from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vramancer_cli.runtime import run_file
from vramancer_cli.runtime.run_file import RUN_FILE, RunRecord
from vramancer_cli.runtime.whole_file import StateFolderError

GOOD = {"pid": 7, "create_time_s": 1.5, "api_url": "http://127.0.0.1:5000", "node_port": 5001, "role": "head"}
RECORD = RunRecord(7, 1.5, "http://127.0.0.1:5000", 5001, "head")


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    assert run_file.read(tmp_path) is None
    run_file.write(tmp_path, RECORD)
    assert run_file.read(tmp_path) == RECORD
    assert json.loads((tmp_path / RUN_FILE).read_text()) == GOOD


def test_what_a_later_version_adds_is_passed_over_and_a_whole_second_is_a_time(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text(json.dumps(GOOD | {"create_time_s": 2, "colour": ["green"]}))
    assert run_file.read(tmp_path) == dataclasses.replace(RECORD, create_time_s=2.0)


BROKEN = {
    "empty": b"",
    "half": b'{"pid": 7, ',
    "another shape": b"[1, 2]",
    "not text": b"\xff\xfe\x00",
    "too long": b" " * 70_000,
    "a well": b"[" * 60_000,
    "not a number": json.dumps(GOOD | {"create_time_s": float("nan")}).encode(),
    "a number without end": b'{"pid": ' + b"9" * 6000 + b"}",
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_one_line_and_left_alone(data: bytes, tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_bytes(data)
    with pytest.raises(StateFolderError, match=r"run\.json is broken \(.+\); it was left as it is\.") as raised:
        run_file.running(tmp_path)
    assert "\n" not in str(raised.value)
    assert "--state-dir" in raised.value.hint
    assert (tmp_path / RUN_FILE).read_bytes() == data


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("pid", value) for value in (None, 0, -1, 2**32, True, 7.0, "7")),
        *(("create_time_s", value) for value in (None, -1, True, "now", 10**400, 1e12)),
        *(("api_url", value) for value in (None, 5000, "ftp://x", "http://", "http://a b", "http://\x1b[2J")),
        ("api_url", "http://" + "x" * 600),
        *(("node_port", value) for value in (None, 0, 65536, 5001.5)),
        *(("role", value) for value in (None, "king", ["head"])),
    ],
)
def test_every_field_is_checked_and_named(name: str, value: object, tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text(json.dumps(GOOD | {name: value}))
    with pytest.raises(StateFolderError, match=f"'{name}'"):
        run_file.read(tmp_path)
    (tmp_path / RUN_FILE).write_text(json.dumps({key: field for key, field in GOOD.items() if key != name}))
    with pytest.raises(StateFolderError, match=f"'{name}'"):
        run_file.read(tmp_path)


def test_the_record_of_a_living_process_is_running_and_of_a_dead_one_is_not(tmp_path: Path) -> None:
    own = RunRecord.of_this_process("http://127.0.0.1:5000", 5001, "worker")
    run_file.write(tmp_path, own)
    assert run_file.running(tmp_path) == own
    run_file.write(tmp_path, dataclasses.replace(own, create_time_s=own.create_time_s - 100))  # a pid given out again
    assert run_file.running(tmp_path) is None
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        child.wait()
    run_file.write(tmp_path, dataclasses.replace(own, pid=child.pid))
    assert run_file.running(tmp_path) is None
    assert run_file.read(tmp_path) is not None


def test_only_ones_own_record_is_cleared(tmp_path: Path) -> None:
    own = RunRecord.of_this_process("http://127.0.0.1:5000", 5001, "head")
    run_file.write(tmp_path, dataclasses.replace(own, pid=own.pid + 1))
    run_file.clear(tmp_path, own)
    assert run_file.read(tmp_path) is not None
    run_file.write(tmp_path, own)
    run_file.clear(tmp_path, own)
    run_file.clear(tmp_path, own)
    assert run_file.read(tmp_path) is None
