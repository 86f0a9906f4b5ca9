"""The log of security events, `security.jsonl` in the state folder: written by a thread of its own, read by `audit`.

It is for looking back, so it never stands in anybody's way: `note` does not wait and does not raise. What a disk does
not take is dropped, counted, and told once. Standard library only; never imports an upper room.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, Unpack

from vramancer_cli.errors import VramancerError
from vramancer_cli.telemetry.security import COUNTED, STRANGERS, Event, Fields, Kind, decode, encode, make

FILE: Final = "security.jsonl"
OLD_FILE: Final = "security.jsonl.1"
LIMIT_BYTES: Final = 1024 * 1024
"""From this on the file becomes the old one, and the one that was old is gone."""
WINDOW_S: Final = 60.0
MOST_STRANGE: Final = 16
"""So many different events of strangers have a line of their own in a minute; all others of a kind share one. So many
addresses cannot push out what is older: to fill both files takes them half a day."""
MOST_KNOWN: Final = 256
"""The same for what only those bring about who were let in once."""
WAITING: Final = 256
CLOSE_S: Final = 2.0
_LOOK_S: Final = 10.0
_LOG: Final = logging.getLogger("vramancer.security")
_OPEN: Final = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)

Clock = Callable[[], float]
"""Unix seconds."""


class SecurityLogError(VramancerError):
    """The log of security events cannot be read."""


class SecurityLog:
    """One per node. `note` may be called from any thread; `folder` None: nothing is kept."""

    def __init__(self, folder: Path | None, clock: Clock = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._tally = Tally()
        self._waiting: queue.Queue[Event | None] = queue.Queue(WAITING)
        self._lost = 0
        self._thread: threading.Thread | None = None
        self._closed = False

    def note(self, kind: Kind, **fields: Unpack[Fields]) -> None:
        """This happened now. What has not the form of its field is left out."""
        if self._folder is None:
            return
        event = make(kind, self._clock(), fields)
        with self._lock:
            if self._closed:
                return
            self._queue(self._tally.add(event) if kind in COUNTED else (event,))
            if self._thread is None:
                self._thread = threading.Thread(target=self._write_all, name="security-log", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Writes what is left; waits for that at most CLOSE_S."""
        with self._lock:
            self._closed = True
            self._queue(self._tally.rest())
        if self._thread is not None:
            with suppress(queue.Full):
                self._waiting.put(None, timeout=CLOSE_S)
            self._thread.join(CLOSE_S)

    def _queue(self, events: Sequence[Event]) -> None:
        """Under the lock."""
        for event in events:
            try:
                self._waiting.put_nowait(event)
            except queue.Full:
                self._lost += 1

    # --- on the thread ------------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        while True:
            events, ends = self._next()
            self._write(events)
            if ends:
                return

    def _next(self) -> tuple[list[Event], bool]:
        """What waits, and what has been counted for long enough; whether that was all."""
        events: list[Event] = []
        try:
            found = self._waiting.get(timeout=_LOOK_S)
            while found is not None:
                events.append(found)
                found = self._waiting.get_nowait()
            return events, True
        except queue.Empty:
            with self._lock:
                return [*events, *self._tally.over(self._clock())], False

    def _write(self, events: Sequence[Event]) -> None:
        if self._folder is None or not events:
            return
        lost = (make(Kind.EVENTS_LOST, self._clock(), {"count": self._lost}),) if self._lost else ()
        try:
            append(self._folder, (*lost, *events))
        except OSError as error:
            self._lose(len(events), error)
        else:
            with self._lock:
                self._lost -= sum(event.count for event in lost)

    def _lose(self, count: int, error: OSError) -> None:
        with self._lock:
            told = self._lost
            self._lost += count
        if not told:
            _LOG.warning("security events are not kept: %s", error.strerror)


class Tally:
    """Events of the last minute, by all but their time and count: the first is written at once, others are counted."""

    def __init__(self) -> None:
        self._seen: dict[Event, tuple[float, int]] = {}

    def add(self, event: Event) -> tuple[Event, ...]:
        """What is to be written now."""
        over = self.over(event.at_s)
        what = replace(event, at_s=0.0)
        if what not in self._seen and not self._has_room(event.kind):
            what = Event(event.kind, 0.0)
        if what not in self._seen:
            self._seen[what] = (event.at_s, 0)
            return (*over, replace(what, at_s=event.at_s))
        since_s, count = self._seen[what]
        self._seen[what] = (since_s, count + 1)
        return over

    def _has_room(self, kind: Kind) -> bool:
        strange = kind in STRANGERS
        others = sum((what.kind in STRANGERS) == strange for what in self._seen)
        return others < (MOST_STRANGE if strange else MOST_KNOWN)

    def over(self, now: float) -> tuple[Event, ...]:
        """What was counted since more than a minute; also when the clock was set back."""
        ended = {what: found for what, found in self._seen.items() if not 0 <= now - found[0] < WINDOW_S}
        self._seen = {what: found for what, found in self._seen.items() if what not in ended}
        return _told(ended)

    def rest(self) -> tuple[Event, ...]:
        seen, self._seen = self._seen, {}
        return _told(seen)


def _told(seen: dict[Event, tuple[float, int]]) -> tuple[Event, ...]:
    return tuple(replace(what, at_s=since_s, count=count) for what, (since_s, count) in seen.items() if count)


# --- the file -------------------------------------------------------------------------------------------------------


def note_now(folder: Path, kind: Kind, **fields: Unpack[Fields]) -> None:
    """As SecurityLog.note, written before it returns, for a verb: never raises."""
    try:
        append(folder, [make(kind, time.time(), fields)])
    except OSError as error:
        _LOG.warning("security events are not kept: %s", error.strerror)


def append(folder: Path, events: Sequence[Event]) -> None:
    """One write, so that the lines of two processes do not mix. Raises OSError."""
    path = folder / FILE
    _make_room(path, folder / OLD_FILE)
    handle = os.open(path, _OPEN, 0o600)
    try:
        if os.name == "posix" and os.fstat(handle).st_mode & 0o077:
            os.fchmod(handle, 0o600)
        data = (b"" if _ends_with_line(handle) else b"\n") + b"".join(map(encode, events))
        if os.write(handle, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(handle)


def read(folder: Path, most: int) -> tuple[Event, ...]:
    """The last `most` events, oldest first; lines that hold none are passed over. Raises SecurityLogError."""
    lines = [line for name in (OLD_FILE, FILE) for line in _tail(folder / name).split(b"\n")]
    events = [event for event in map(decode, lines) if event is not None]
    return tuple(sorted(events, key=lambda event: event.at_s)[-most:]) if most else ()


def _make_room(path: Path, old: Path) -> None:
    try:
        if path.stat().st_size >= LIMIT_BYTES:
            path.replace(old)
    except FileNotFoundError:
        return
    except PermissionError:  # Windows, while another process has it open: next time
        _LOG.debug("the log of security events is in use")


def _ends_with_line(handle: int) -> bool:
    """Whether the last line is whole: a crash or a full disk may have cut it."""
    if not os.fstat(handle).st_size:
        return True
    os.lseek(handle, -1, os.SEEK_END)
    return os.read(handle, 1) == b"\n"


def _tail(path: Path) -> bytes:
    """The file's end, at most twice what it may hold."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 2 * LIMIT_BYTES))
            return file.read(2 * LIMIT_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise SecurityLogError(f"{path} cannot be read: {error.strerror}.") from error
