"""The first line of every verb that needs torch: in the one-file program, unpack the runtime once and become it.

Anywhere else it does nothing. Never imports torch or transport.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Final

from commands.options import RuntimeFlags
from commands.terminal import notes
from vramancer_cli.launcher.bundle import Payload, bundle

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from vramancer_cli.launcher import entering

WORDS: Final = {
    "waiting": "Another start unpacks the runtime, waiting for it",
    "fetching": "Fetching the runtime",
    "unpacking": "Unpacking the runtime (only this once)",
}


def enter_runtime(flags: RuntimeFlags) -> None:
    """In the one-file program it does not return: the same command line goes on in the runtime."""
    frozen = bundle()
    if frozen is not None and frozen.payload is not None:
        _enter(cache_folder(flags), frozen.payload, flags.runtime_url)


def _enter(folder: Path, payload: Payload, url: str | None) -> None:
    from vramancer_cli.launcher import cache, entering, handover

    with closing(entering.prepare(folder, payload, Path(sys.executable), url)) as preparing:
        program = _shown(preparing, notes())
    lock = cache.hold(folder, payload.name)
    if lock is None:
        raise cache.CacheBusyError
    handover.become(program, sys.argv[1:], lock)


def cache_folder(flags: RuntimeFlags) -> Path:
    from vramancer_cli.launcher import cache

    return (flags.cache_dir or cache.default_folder()).expanduser().absolute()


def _shown(preparing: Generator[entering.Progress, None, Path], console: Console) -> Path:
    """Drives `preparing` to its end; says nothing where there is nothing to wait for."""
    try:
        first = next(preparing)
    except StopIteration as done:
        return done.value
    return _with_bars(first, preparing, console)


def _with_bars(now: entering.Progress, more: Generator[entering.Progress, None, Path], console: Console) -> Path:
    """A bar per stage on a terminal, a line elsewhere."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    tasks: dict[entering.Stage, TaskID] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        while True:
            if now.stage not in tasks:
                tasks[now.stage] = bars.add_task(WORDS[now.stage], total=now.all_bytes or None)
                _line(now.stage, console)
            bars.update(tasks[now.stage], completed=now.done_bytes)
            try:
                now = next(more)
            except StopIteration as done:
                return done.value


def _line(stage: entering.Stage, console: Console) -> None:
    if not console.is_terminal:
        console.print(f"{WORDS[stage]}…", markup=False)
