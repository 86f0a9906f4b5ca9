from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path

import pytest

from vramancer_cli.runtime import whole_file
from vramancer_cli.runtime.whole_file import StateFolderError
from vramancer_cli.serving import replay
from vramancer_cli.serving.replay import CEILINGS_FILE, LEAD_S, ReplayedError, ReplayGuard, Seen
from vramancer_cli.serving.signing import WINDOW_S, Signed

NOW = 1_800_000_000
KEY, OTHER = "0" * 16, "1" * 16


def request(time_s: int, nonce: str, key: str = KEY) -> Signed:
    return Signed(key, time_s, nonce, "0" * 64)


async def is_accepted(guard: ReplayGuard, signed: Signed, now: float = NOW) -> bool:
    try:
        await guard.accept(signed, now)
    except ReplayedError:
        return False
    return True


async def test_once_and_not_twice(tmp_path: Path) -> None:
    guard = ReplayGuard(tmp_path)
    assert await is_accepted(guard, request(NOW, "a"))
    assert not await is_accepted(guard, request(NOW, "a"))
    assert await is_accepted(guard, request(NOW, "b"))
    assert await is_accepted(guard, request(NOW, "a", OTHER))
    assert await is_accepted(guard, request(NOW - 200, "c"))


async def test_not_after_a_restart_either_whatever_the_senders_clock_said(tmp_path: Path) -> None:
    """The bytes that an eavesdropper kept, sent to every later process: a clock that was ahead helps nobody."""
    sent = [request(NOW + ahead_s, f"nonce-{ahead_s}") for ahead_s in (-WINDOW_S, -1, 0, 1, 100, WINDOW_S)]
    guard = ReplayGuard(tmp_path)
    for signed in sent:
        assert await is_accepted(guard, signed)
    for restart in range(3):
        guard = ReplayGuard(tmp_path)
        for signed in sent:
            assert not await is_accepted(guard, signed, NOW + restart), signed


async def test_after_a_restart_new_requests_are_accepted_soon(tmp_path: Path) -> None:
    await ReplayGuard(tmp_path).accept(request(NOW, "a"), NOW)
    guard = ReplayGuard(tmp_path)
    assert not await is_accepted(guard, request(NOW + LEAD_S, "b"))
    assert await is_accepted(guard, request(NOW + LEAD_S + 1, "b"), NOW + LEAD_S + 1)
    assert await is_accepted(guard, request(NOW, "a", OTHER)), "another key's ceiling is its own"


async def test_the_ceiling_is_on_disk_before_the_request_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append("file"), real(handle))[1])
    guard = ReplayGuard(tmp_path)
    for ahead_s in (0, 1, LEAD_S, LEAD_S + 1):
        await guard.accept(request(NOW + ahead_s, f"n{ahead_s}"), NOW)
        assert json.loads((tmp_path / CEILINGS_FILE).read_bytes())[KEY] >= NOW + ahead_s
    assert synced
    assert (tmp_path / CEILINGS_FILE).stat().st_mode & 0o077 == 0


async def test_a_disk_that_keeps_nothing_accepts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guard = ReplayGuard(tmp_path)

    def full(path: Path, data: bytes) -> None:
        raise StateFolderError("no space")

    monkeypatch.setattr(whole_file, "write", full)
    with pytest.raises(StateFolderError):
        await guard.accept(request(NOW, "a"), NOW)
    with pytest.raises(StateFolderError):
        await guard.accept(request(NOW, "b"), NOW)


async def test_one_that_waits_for_the_disk_does_not_pass_before_it(tmp_path: Path) -> None:
    """Many at once: each is accepted once, and each lies under what is on disk when it is."""
    guard = ReplayGuard(tmp_path)

    async def accept(number: int) -> None:
        await guard.accept(request(NOW + number, "n"), NOW)
        assert json.loads((tmp_path / CEILINGS_FILE).read_bytes())[KEY] >= NOW + number

    await asyncio.gather(*(accept(number) for number in range(60)))
    results = await asyncio.gather(*(is_accepted(guard, request(NOW + number, "n")) for number in range(60)))
    assert not any(results)


def test_a_clock_that_goes_back_lets_nothing_in_twice() -> None:
    seen = Seen()
    seen.note(NOW, "a", NOW)
    seen.note(NOW + 2 * WINDOW_S, "b", NOW + 2 * WINDOW_S)  # "a" is forgotten here
    assert len(seen.nonces) == 1
    with pytest.raises(ReplayedError):
        seen.note(NOW, "a", NOW)


def test_what_is_remembered_is_bounded_and_what_is_forgotten_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST_NONCES", 10)
    seen, rng = Seen(), random.Random(7)
    accepted: list[tuple[int, str]] = []
    for number in range(200):
        asked = (NOW + rng.randrange(-200, 200), f"n{number}")
        try:
            seen.note(*asked, NOW)
            accepted.append(asked)
        except ReplayedError:
            assert asked[0] <= seen.floor_s
    assert len(seen.nonces) <= 10 and len(seen.by_age) <= 10 and len(accepted) > 10
    for asked in accepted:
        with pytest.raises(ReplayedError):
            seen.note(*asked, NOW)


@pytest.mark.parametrize("text", ["", "[]", "3", '{"0": 3}', '{"0000000000000000": "x"}', "{"])
def test_a_broken_memory_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / CEILINGS_FILE).write_text(text, "utf-8")
    with pytest.raises(StateFolderError, match="broken"):
        ReplayGuard(tmp_path)


async def test_the_keys_on_disk_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MOST_KEPT", 3)
    guard = ReplayGuard(tmp_path)
    for number in range(6):
        await guard.accept(request(NOW + number, "a", f"{number:016x}"), NOW)
    kept = json.loads((tmp_path / CEILINGS_FILE).read_bytes())
    assert sorted(kept) == [f"{number:016x}" for number in (3, 4, 5)]
