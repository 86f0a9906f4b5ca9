"""The bar of a download, on a terminal; elsewhere a line for each tenth. Never imports torch or transport."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from commands.phrases import size
from commands.terminal import notes, plain

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class DownloadBar:
    """A context. The bar is there from the first bytes to the last, so that nothing else is ever written through it."""

    def __init__(self) -> None:
        self._console = notes()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._tenth = -1

    def show(self, what: str, done_bytes: int, all_bytes: int) -> None:
        """From any one thread."""
        if self._console.is_terminal:
            self._draw(what, done_bytes, all_bytes)
        else:
            self._line(what, done_bytes, all_bytes)

    def _draw(self, what: str, done_bytes: int, all_bytes: int) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bar is None:
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._task = self._bar.add_task(f"Downloading {plain(what)}", total=all_bytes)
            self._bar.start()
        assert self._task is not None
        self._bar.update(self._task, completed=done_bytes, total=all_bytes)
        if done_bytes >= all_bytes:
            self._stop()

    def _line(self, what: str, done_bytes: int, all_bytes: int) -> None:
        tenth = 10 * done_bytes // max(1, all_bytes)
        if tenth > self._tenth:
            self._tenth = tenth
            line = f"Downloading {plain(what)}: {size(done_bytes)} of {size(all_bytes)}"
            self._console.print(line, markup=False, soft_wrap=True)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
