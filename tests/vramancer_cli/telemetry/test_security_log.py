"""security.jsonl: bounded, private, whole lines; and it never stands in anybody's way."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import stat
import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from vramancer_cli.telemetry import security_log
from vramancer_cli.telemetry.security import Event, Kind, encode
from vramancer_cli.telemetry.security_log import (
    FILE,
    LIMIT_BYTES,
    MOST_STRANGE,
    OLD_FILE,
    WINDOW_S,
    SecurityLog,
    SecurityLogError,
    Tally,
    append,
    note_now,
    read,
)

NOW = 1_800_000_000.0


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def event(at_s: float = NOW, kind: Kind = Kind.ADMITTED, address: str = "") -> Event:
    return Event(kind, at_s, address=address)


# --- written --------------------------------------------------------------------------------------------------------


def test_what_is_noted_is_read_oldest_first(tmp_path: Path) -> None:
    log = SecurityLog(tmp_path)
    log.note(Kind.ADMITTED, node="a" * 32, invitation="code in slot 4")
    log.note(Kind.REMOVED, node="a" * 32)
    log.close()
    assert [found.kind for found in read(tmp_path, 10)] == [Kind.ADMITTED, Kind.REMOVED]
    assert [found.kind for found in read(tmp_path, 1)] == [Kind.REMOVED]
    assert read(tmp_path, 0) == ()
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_without_a_folder_nothing_is_kept_and_no_thread_runs() -> None:
    before = threading.active_count()
    log = SecurityLog(None)
    log.note(Kind.REMOVED, node="a" * 32)
    assert threading.active_count() == before
    log.close()


def test_its_thread_ends_with_it_and_later_notes_are_nothing(tmp_path: Path) -> None:
    before = threading.active_count()
    log = SecurityLog(tmp_path)
    log.note(Kind.REMOVED)
    log.close()
    assert threading.active_count() == before
    log.note(Kind.ADMITTED)
    log.close()
    assert len(read(tmp_path, 10)) == 1


def test_notes_of_many_threads_are_all_there(tmp_path: Path) -> None:
    log = SecurityLog(tmp_path)

    def some() -> None:
        for _ in range(20):
            log.note(Kind.TOKEN_MADE)

    threads = [threading.Thread(target=some) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert len(read(tmp_path, 1000)) == 160


def test_a_file_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    (tmp_path / FILE).touch(0o644)
    (tmp_path / FILE).chmod(0o644)
    append(tmp_path, [event()])
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


def test_it_is_bounded_and_keeps_what_is_young(tmp_path: Path) -> None:
    line = len(encode(event()))
    for start in range(0, 4 * LIMIT_BYTES // line, 1000):
        append(tmp_path, [event(NOW + start + place) for place in range(1000)])
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert set(sizes) == {FILE, OLD_FILE}
    assert all(size <= LIMIT_BYTES + 1000 * line for size in sizes.values())
    found = read(tmp_path, 100_000)
    assert len(found) * line > LIMIT_BYTES
    assert [after.at_s - before.at_s for before, after in pairwise(found)] == [1] * (len(found) - 1)


def test_a_line_that_a_crash_cut_is_passed_over_and_hides_no_other(tmp_path: Path) -> None:
    append(tmp_path, [event(NOW)])
    with (tmp_path / FILE).open("ab") as file:
        file.write(encode(event(NOW + 1))[:20])
    append(tmp_path, [event(NOW + 2)])
    assert [found.at_s for found in read(tmp_path, 10)] == [NOW, NOW + 2]


def _write_many(folder: Path, kind: Kind) -> None:
    for number in range(200):
        append(folder, [event(NOW + number, kind)])


def test_two_processes_do_not_mix_their_lines(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=_write_many, args=(tmp_path, kind)) for kind in (Kind.ADMITTED, Kind.REMOVED)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert Counter(found.kind for found in read(tmp_path, 1000)) == {Kind.ADMITTED: 200, Kind.REMOVED: 200}
    assert b"\n\n" not in (tmp_path / FILE).read_bytes()


def test_what_is_no_file_is_told_to_who_reads(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(SecurityLogError, match="cannot be read"):
        read(tmp_path, 10)


# --- a full disk ----------------------------------------------------------------------------------------------------


class FullDisk:
    """Takes half of what is written, once; then nothing, until it is `freed`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self._half, self._write = True, True, os.write
        monkeypatch.setattr(security_log.os, "write", self.write)

    def write(self, handle: int, data: bytes) -> int:
        if not self.full:
            return self._write(handle, data)
        if self._half:
            self._half = False
            return self._write(handle, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_drops_events_says_so_once_and_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    append(tmp_path, [event()])
    disk, log = FullDisk(monkeypatch), SecurityLog(tmp_path)
    with caplog.at_level(logging.WARNING, "vramancer"):
        for _ in range(3):
            log._write([event(NOW + 1, Kind.REMOVED)])
    assert [record.getMessage() for record in caplog.records] == [
        "security events are not kept: No space left on device"
    ]
    disk.full = False
    log._write([event(NOW + 2)])
    log._write([event(NOW + 3)])
    found = {(found.kind, found.count) for found in read(tmp_path, 10)}
    assert found == {(Kind.ADMITTED, 1), (Kind.EVENTS_LOST, 3)}


def test_a_verb_goes_on_when_nothing_can_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    note_now(tmp_path / "missing", Kind.KEY_ADDED, key="laptop", role="user")
    assert "not kept" in caplog.text and "laptop" not in caplog.text


def test_a_disk_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer stands in a write for the whole test; notes return, and their number is bounded."""
    hangs, go_on = threading.Event(), threading.Event()

    def hang(handle: int, data: bytes) -> int:
        hangs.set()
        go_on.wait(30)
        return len(data)

    monkeypatch.setattr(security_log.os, "write", hang)
    log = SecurityLog(tmp_path)
    log.note(Kind.REMOVED)
    assert hangs.wait(10)
    for _ in range(3 * security_log.WAITING):
        log.note(Kind.REMOVED)
    assert log._waiting.qsize() == security_log.WAITING
    assert log._lost == 2 * security_log.WAITING
    go_on.set()
    log.close()


# --- counting -------------------------------------------------------------------------------------------------------


def test_the_same_is_written_once_a_minute_with_how_often_it_was() -> None:
    tally = Tally()
    one, other = event(kind=Kind.WRONG_KEY, address="192.0.2.7"), event(kind=Kind.WRONG_KEY, address="192.0.2.8")
    assert tally.add(one) == (one,)
    assert tally.add(other) == (other,)
    assert [tally.add(one) for _ in range(5)] == [()] * 5
    later = Event(Kind.WRONG_KEY, NOW + WINDOW_S, address="192.0.2.7")
    assert tally.add(later) == (Event(Kind.WRONG_KEY, NOW, address="192.0.2.7", count=5), later)
    assert tally.rest() == ()


def test_what_was_counted_is_told_when_nothing_more_comes() -> None:
    tally = Tally()
    tally.add(event(kind=Kind.WRONG_KEY))
    tally.add(event(kind=Kind.WRONG_KEY))
    assert tally.over(NOW + WINDOW_S - 1) == ()
    assert tally.over(NOW + WINDOW_S) == (event(kind=Kind.WRONG_KEY),)


def test_a_clock_that_is_set_back_stops_no_counting() -> None:
    tally = Tally()
    tally.add(event(kind=Kind.WRONG_KEY))
    tally.add(event(kind=Kind.WRONG_KEY))
    assert len(tally.add(event(NOW - 86400, Kind.WRONG_KEY))) == 2


def test_strangers_of_many_addresses_share_a_line_and_push_nobody_out() -> None:
    tally = Tally()
    written = [tally.add(event(kind=Kind.WRONG_KEY, address=f"192.0.2.{number}")) for number in range(200)]
    assert sum(map(len, written)) == MOST_STRANGE + 1
    (rest,) = tally.over(NOW + WINDOW_S)
    assert rest == Event(Kind.WRONG_KEY, NOW, count=200 - MOST_STRANGE - 1)
    for number in range(200):
        tally.add(event(kind=Kind.WRONG_KEY, address=f"192.0.2.{number}"))
    joined = Event(Kind.JOINED, NOW, node="a" * 32)
    assert tally.add(joined) == (joined,), "who was let in keeps a line of its own"


def test_a_flood_through_the_log_is_two_lines(tmp_path: Path) -> None:
    clock = Clock()
    log = SecurityLog(tmp_path, clock)
    for _ in range(1000):
        log.note(Kind.WRONG_KEY, address="192.0.2.7")
    log.close()
    assert [found.count for found in read(tmp_path, 10)] == [1, 999]


def test_every_admission_has_its_own_line(tmp_path: Path) -> None:
    log = SecurityLog(tmp_path, Clock())
    for _ in range(5):
        log.note(Kind.ADMITTED, invitation="token 1a2b3c4d")
    log.close()
    assert [found.count for found in read(tmp_path, 10)] == [1] * 5
