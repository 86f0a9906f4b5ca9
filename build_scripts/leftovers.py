"""What a program left behind: processes that belong to a folder, and files where none should be.

Linux and macOS. Knows nothing of VRAMancer.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

_POLL_S: Final = 0.1


def processes_of(folder: Path) -> list[psutil.Process]:
    """Those whose executable lies in `folder`, or whose HOME does: a helper program that one of them started."""
    inside = folder.resolve()
    found = (process for pid in psutil.pids() if pid != os.getpid() for process in _seen_anew(pid))
    return [process for process in found if any(_lies_in(path, inside) for path in _places(process))]


def _seen_anew(pid: int) -> Iterator[psutil.Process]:
    """Not from `psutil.process_iter`: that one remembers the executable from before an exec."""
    with suppress(psutil.Error):
        yield psutil.Process(pid)


def _places(process: psutil.Process) -> Iterator[str]:
    """Nothing for a process that ended meanwhile (a zombie has ended), or that another user runs."""
    try:
        yield process.exe()
        yield process.environ().get("HOME", "")
    except psutil.Error:
        return


def _lies_in(path: str, folder: Path) -> bool:
    return Path(path).is_relative_to(folder) if path else False


def left_after(folder: Path, deadline_s: float) -> list[psutil.Process]:
    """The processes of `folder` that are still there when it has none, or after `deadline_s`."""
    until = time.monotonic() + deadline_s
    while (left := processes_of(folder)) and time.monotonic() < until:
        time.sleep(_POLL_S)
    return left


def kill_all(folder: Path, deadline_s: float = 10.0) -> int:
    """Kills every process of `folder`, also those that they start meanwhile; how many there were."""
    killed: set[int] = set()
    until = time.monotonic() + deadline_s
    while (found := processes_of(folder)) and time.monotonic() < until:
        for process in found:
            killed.add(process.pid)
            _kill(process)
        psutil.wait_procs(found, timeout=1)
    return len(killed)


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def remove(folder: Path) -> None:
    """Kills every process of `folder`, then removes it; an impatient second Ctrl-C does not stop half-way."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        kill_all(folder)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def strangers(folder: Path, expected: Collection[str]) -> list[str]:
    """What lies in `folder`, as relative paths, apart from the folders `expected` with all that is in them."""
    wanted = {Path(path) for path in expected}
    parents = {parent for path in wanted for parent in path.parents}
    return sorted(str(path) for path in _entries(folder, folder, wanted) if path not in parents)


def _entries(folder: Path, root: Path, wanted: Collection[Path]) -> Iterator[Path]:
    for path in folder.iterdir():
        inside = path.relative_to(root)
        if inside in wanted:
            continue
        yield inside
        if path.is_dir() and not path.is_symlink():
            yield from _entries(path, root, wanted)
