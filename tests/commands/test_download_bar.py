from __future__ import annotations

import pytest
from rich.console import Console

from commands import download_bar
from commands.download_bar import DownloadBar


def test_elsewhere_than_on_a_terminal_a_line_for_each_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with DownloadBar() as bar:
        for done in range(0, 1001, 7):
            bar.show("org/name", done << 20, 1000 << 20)
        bar.show("org/name", 1000 << 20, 1000 << 20)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11
    assert lines[-1] == "Downloading org/name: 1000 MiB of 1000 MiB"


def test_on_a_terminal_the_bar_is_gone_when_all_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, width=100, record=True)
    monkeypatch.setattr(download_bar, "notes", lambda: console)
    with DownloadBar() as bar:
        bar.show("org/na\x1bme", 1, 10)
        assert bar._bar is not None and "Downloading org/name" in bar._bar.tasks[0].description
        bar.show("org/na\x1bme", 10, 10)
        assert bar._bar is None


def test_an_error_in_the_middle_leaves_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_bar, "notes", lambda: Console(force_terminal=True, width=100))
    bar = DownloadBar()
    with pytest.raises(ValueError), bar:
        bar.show("org/name", 1, 10)
        raise ValueError
    assert bar._bar is None
