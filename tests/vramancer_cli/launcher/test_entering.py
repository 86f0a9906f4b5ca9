from __future__ import annotations

import multiprocessing
import sys
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TypeVar

import pytest

from tests.helpers.tiny_runtime import TinyRuntime, tiny_runtime
from vramancer_cli.launcher import cache
from vramancer_cli.launcher.bundle import Payload
from vramancer_cli.launcher.cache import CacheBusyError
from vramancer_cli.launcher.entering import NoRuntimeError, Progress, prepare
from vramancer_cli.launcher.payload import BrokenPayloadError

T = TypeVar("T")


@pytest.fixture
def tiny(tmp_path: Path) -> TinyRuntime:
    (tmp_path / "made").mkdir()
    return tiny_runtime(tmp_path / "made")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def prepared(folder: Path, payload: Payload, launcher: Path) -> tuple[Path, list[Progress]]:
    steps: list[Progress] = []
    preparing = prepare(folder, payload, launcher)
    while True:
        try:
            steps.append(next(preparing))
        except StopIteration as done:
            return done.value, steps


def test_the_first_start_unpacks_and_the_second_does_not(tiny: TinyRuntime, folder: Path) -> None:
    program, steps = prepared(folder, tiny.payload, tiny.launcher)
    assert program.read_text().startswith("#!/bin/sh")
    assert steps
    assert {step.stage for step in steps} == {"unpacking"}
    before = program.stat().st_ino
    assert prepared(folder, tiny.payload, tiny.launcher) == (program, [])
    assert program.stat().st_ino == before


def test_a_runtime_beside_the_launcher_is_taken(tiny: TinyRuntime, folder: Path) -> None:
    payload = tiny.beside()
    tiny.packed.rename(tiny.packed.parent / payload.file_name)
    program, steps = prepared(folder, payload, tiny.launcher)
    assert program.exists()
    assert {step.stage for step in steps} == {"unpacking"}


def test_without_a_runtime_it_says_where_one_would_be(tiny: TinyRuntime, folder: Path) -> None:
    with pytest.raises(NoRuntimeError) as caught:
        prepared(folder, tiny.beside(), tiny.launcher)
    assert tiny.payload.file_name in caught.value.hint
    assert "VRM_RUNTIME_URL" in caught.value.hint


def test_a_damaged_runtime_is_made_anew(tiny: TinyRuntime, folder: Path) -> None:
    program, _ = prepared(folder, tiny.payload, tiny.launcher)
    program.write_text("cut")
    (program.parent / "added by somebody").touch()
    again, steps = prepared(folder, tiny.payload, tiny.launcher)
    assert again.read_text().startswith("#!/bin/sh")
    assert not (program.parent / "added by somebody").exists()
    assert steps


def test_a_damaged_runtime_that_somebody_runs_is_left(
    tiny: TinyRuntime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vramancer_cli.launcher.entering.DAMAGED_DEADLINE_S", 0.1)
    program, _ = prepared(folder, tiny.payload, tiny.launcher)
    held = cache.hold(folder, tiny.payload.name)
    assert held is not None
    program.write_text("cut")
    with pytest.raises(CacheBusyError):
        prepared(folder, tiny.payload, tiny.launcher)
    assert program.read_text() == "cut"
    held.close()


def test_a_broken_launcher_leaves_an_empty_cache(tiny: TinyRuntime, folder: Path) -> None:
    broken = bytearray(tiny.launcher.read_bytes())
    broken[-len(b"MEI the archive comes last") - 100] ^= 1
    tiny.launcher.write_bytes(broken)
    with pytest.raises(BrokenPayloadError):
        prepared(folder, tiny.payload, tiny.launcher)
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


def test_what_a_killed_start_left_is_removed(tiny: TinyRuntime, folder: Path) -> None:
    cache.open_folder(folder)
    (folder / f".unpacking-{tiny.payload.name}-xyz").mkdir()
    prepared(folder, tiny.payload, tiny.launcher)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {tiny.payload.name}


UNPACKED, NOT_UNPACKED = 11, 12


def test_many_starts_at_once_unpack_once(tiny: TinyRuntime, folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    starts = [context.Process(target=_start, args=(barrier, folder, tiny.payload, tiny.launcher)) for _ in range(4)]
    for start in starts:
        start.start()
    for start in starts:
        start.join(60)
    assert sorted(start.exitcode or 0 for start in starts) == [UNPACKED, *[NOT_UNPACKED] * 3]


def _start(barrier: Barrier, folder: Path, payload: Payload, launcher: Path) -> None:
    """A start that goes on to run until all of them have come so far. Its exit code says whether it unpacked."""
    barrier.wait(30)
    program, steps = prepared(folder, payload, launcher)
    held = cache.hold(folder, payload.name)
    assert program.exists()
    assert held is not None
    barrier.wait(30)
    held.close()
    sys.exit(UNPACKED if any(step.stage == "unpacking" for step in steps) else NOT_UNPACKED)


def test_another_build_gets_its_own_folder(tiny: TinyRuntime, folder: Path) -> None:
    assert replace(tiny.payload, digest="a" * 64).name != tiny.payload.name
