"""What can be seen without freezing; the frozen program itself is driven by `make smoke`."""

from __future__ import annotations

import io
from collections.abc import Generator
from pathlib import Path

from rich.console import Console

from commands import enter_runtime
from commands.enter_runtime import WORDS, _shown
from commands.options import RuntimeFlags
from vramancer_cli.launcher.entering import Progress


def test_an_ordinary_python_goes_on(tmp_path: Path) -> None:
    enter_runtime.enter_runtime(RuntimeFlags(cache_dir=tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


def preparing() -> Generator[Progress, None, Path]:
    yield Progress("waiting")
    yield Progress("unpacking", 10, 100)
    yield Progress("unpacking", 100, 100)
    return Path("program")


def test_a_pipe_gets_a_line_per_stage() -> None:
    pipe = io.StringIO()
    assert _shown(preparing(), Console(file=pipe)) == Path("program")
    assert pipe.getvalue().splitlines() == [f"{WORDS['waiting']}…", f"{WORDS['unpacking']}…"]


def test_a_terminal_gets_a_bar_that_ends_full() -> None:
    screen = io.StringIO()
    assert _shown(preparing(), Console(file=screen, force_terminal=True, width=100)) == Path("program")
    assert WORDS["unpacking"] in screen.getvalue()
    assert "100/100 bytes" in screen.getvalue()


def test_nothing_is_said_when_nothing_is_to_be_done() -> None:
    def ready() -> Generator[Progress, None, Path]:
        yield from ()
        return Path("program")

    for terminal in (False, True):
        screen = io.StringIO()
        _shown(ready(), Console(file=screen, force_terminal=terminal))
        assert screen.getvalue() == ""
