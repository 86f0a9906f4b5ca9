"""The parts of the smoke test that need no binary: what it finds left over, and how it runs its steps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from build_scripts import leftovers, smoke
from build_scripts.frozen_program import Log, Machine
from build_scripts.pseudo_terminal import ScreenError, Terminal, plain, terminal
from build_scripts.smoke_scene import (
    Scene,
    StepError,
    expect,
    expect_no_halves,
    expect_nothing_left,
    expect_refusal,
    scene,
    wait_for,
)
from build_scripts.smoke_trouble import refuses_a_damaged_file, runs_out_of_room

SHELL = "/bin/sh"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the smoke test is for Linux")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program of one file: it runs what it is told, in the shell."""
    path = tmp_path / "program"
    path.write_text(f'#!{SHELL}\neval "$1"\n')
    path.chmod(0o755)
    return path


@pytest.fixture
def played(tmp_path: Path, program: Path) -> Iterator[Scene]:
    with scene(tmp_path / "scene", program) as opened:
        yield opened


def _sleeper(executable: Path, **environment: str) -> subprocess.Popen[bytes]:
    shutil.copy2(shutil.which("sleep") or "", executable)
    return subprocess.Popen([executable, "60"], env=environment)


def test_a_process_is_found_by_its_executable_and_killed(tmp_path: Path) -> None:
    process = _sleeper(tmp_path / "runtime")
    try:
        assert [found.pid for found in leftovers.processes_of(tmp_path)] == [process.pid]
        assert leftovers.processes_of(tmp_path / "elsewhere") == []
        assert leftovers.kill_all(tmp_path) == 1
        assert leftovers.left_after(tmp_path, 5) == []
    finally:
        process.kill()
        process.wait()


def test_a_process_is_found_by_its_home_when_its_executable_lies_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    process = _sleeper(tmp_path / "runtime", HOME=str(tmp_path / "home" / "x"))
    try:
        assert [found.pid for found in leftovers.processes_of(tmp_path / "home")] == [process.pid]
    finally:
        process.kill()
        process.wait()


def test_a_process_is_found_when_its_executable_was_removed(tmp_path: Path) -> None:
    process = _sleeper(tmp_path / "runtime")
    try:
        (tmp_path / "runtime").unlink()
        assert [found.pid for found in leftovers.processes_of(tmp_path)] == [process.pid]
    finally:
        process.kill()
        process.wait()


def test_strangers_are_all_but_what_is_expected(tmp_path: Path) -> None:
    for path in (".cache/vramancer/x", ".cache/other/y", ".config/vramancer/z", "w"):
        (tmp_path / path).mkdir(parents=True)
    assert leftovers.strangers(tmp_path, [".cache/vramancer", ".config/vramancer"]) == [
        ".cache/other", ".cache/other/y", "w",
    ]  # fmt: skip


def test_the_program_runs_on_a_machine_with_nothing_on_it(played: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VRM_PORT", "7")
    ran = played.desk.run('echo "$HOME|$TMPDIR|$PATH|$VRM_PORT"; pwd; echo oops >&2; exit 3')
    home, temporary, path, port = ran.out.splitlines()[0].split("|")
    assert (home, temporary, port) == (str(played.desk.home), str(played.desk.temporary), "")
    assert list(Path(path).iterdir()) == []
    assert Path(ran.out.splitlines()[1]).is_relative_to(played.desk.folder)
    assert (ran.code, ran.err) == (3, "oops\n")


def test_a_verb_that_does_not_end_is_killed_with_its_children(played: Scene) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        played.desk.run(f"{shutil.which('sleep')} 60 & {shutil.which('sleep')} 60", deadline_s=0.5)
    assert leftovers.left_after(played.root, 5) == []


def test_what_is_left_is_named(played: Scene) -> None:
    expect_nothing_left(played.desk)
    for place in (played.desk.temporary / "_MEI123", played.desk.home / ".torch", played.desk.folder / "work" / "log"):
        place.mkdir()
        with pytest.raises(StepError, match=place.name):
            expect_nothing_left(played.desk)
        place.rmdir()
    (played.desk.cache / "runtime-0123456789abcdef").mkdir(parents=True)
    expect_nothing_left(played.desk)
    expect_no_halves(played.desk)
    (played.desk.cache / ".unpacking-runtime-0123456789abcdef-x").mkdir()
    with pytest.raises(StepError, match="unpacking"):
        expect_no_halves(played.desk)


def test_a_process_that_is_left_is_named(played: Scene) -> None:
    process = _sleeper(played.desk.folder / "runtime")
    try:
        with pytest.raises(StepError, match=f"pid {process.pid}"):
            expect_nothing_left(played.desk, deadline_s=0.2)
    finally:
        process.kill()
        process.wait()


def test_a_scene_leaves_no_process_and_no_folder_however_it_ends(tmp_path: Path, program: Path) -> None:
    root = tmp_path / "scene"
    with pytest.raises(KeyboardInterrupt), scene(root, program) as opened:
        process = _sleeper(opened.desk.folder / "runtime")
        raise KeyboardInterrupt
    process.wait(5)
    assert not root.exists()


def _passes(played: Scene) -> str:
    played.desk.run("echo quiet")
    return "well done"


def _fails(played: Scene) -> str:
    played.desk.run("echo loud; echo louder >&2; exit 7")
    expect(False, "it was too loud")
    return ""


def _breaks(played: Scene) -> str:
    return played.desk.run("echo nonsense").json()


def test_steps_run_until_one_fails_and_then_its_output_is_shown(
    played: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not smoke.run_steps([_passes, _fails, _passes], played)
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].startswith("✓  passes") and lines[0].endswith(" s  well done")
    assert lines[1].startswith("✗  fails") and lines[1].endswith(" s  it was too loud")
    assert "loud\nlouder\n(exit code 7)" in out
    assert "quiet" not in out
    assert len([line for line in lines if line[:1] in "✓✗"]) - lines.count("") == 2


def test_a_surprise_is_a_failure_too(played: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    assert not smoke.run_steps([_breaks], played)
    out = capsys.readouterr().out
    assert out.startswith("✗  breaks")
    assert "JSONDecodeError" in out and "nonsense" in out


def test_what_an_open_terminal_writes_during_a_step_is_shown(played: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    def opens(played: Scene) -> str:
        opened = played.stack.enter_context(played.desk.terminal("echo early; read x; echo late; read x"))
        opened.see("early")
        opened.type("\n")
        return ""

    def fails(played: Scene) -> str:
        ((_, opened, _),) = played.log._terminals
        opened.see("late")
        expect(False, "no")
        return ""

    assert not smoke.run_steps([opens, fails], played)
    shown = capsys.readouterr().out.rpartition("(terminal)")[2]
    assert "late" in shown
    assert "early" not in shown


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 1", 1)])
def test_its_exit_code_says_whether_all_passed_and_no_folder_stays(
    script: str, code: int, program: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(played: Scene) -> str:
        expect(played.desk.run(script).code == 0, "no")
        return ""

    monkeypatch.setattr(smoke, "ALWAYS", [step])
    monkeypatch.setattr(smoke, "END", [])
    monkeypatch.setattr(smoke.tempfile, "tempdir", str(program.parent))
    before = set(program.parent.iterdir())
    assert smoke.main([str(program), "--quick"]) == code
    assert set(program.parent.iterdir()) == before
    assert ("failed" in capsys.readouterr().out) == bool(code)


def test_without_a_file_it_says_how_to_build_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert smoke.main([str(tmp_path / "nothing")]) == 2
    assert "make binary" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "err", "refused"),
    [
        (1, "error: No.\n", True),
        (1, "Unpacking…\nerror: No.\n", True),
        (0, "error: No.\n", False),
        (1, "No.\n", False),
        (1, "error: No.\nerror: No.\n", False),
        (1, "error: No.\nmore\n", False),
        (1, "Traceback (most recent call last):\nerror: No.\n", False),
        (1, "", False),
    ],
)
def test_a_refusal_is_one_line_at_the_end(code: int, err: str, refused: bool) -> None:
    if refused:
        assert expect_refusal(code, err) == "error: No."
    else:
        with pytest.raises(StepError):
            expect_refusal(code, err)


def test_a_terminal_kills_what_its_program_started(tmp_path: Path) -> None:
    shutil.copy2(shutil.which("sleep") or "", tmp_path / "runtime")
    command = [SHELL, "-c", f"{tmp_path}/runtime 60 & echo up; wait"]
    with terminal(command, {"PATH": os.environ["PATH"]}) as opened:
        opened.see("up")
        wait_for(lambda: len(leftovers.processes_of(tmp_path)) == 1, "the program was not started", 20)
    assert leftovers.left_after(tmp_path, 5) == []


def test_a_program_that_ends_is_not_waited_for() -> None:
    with terminal([SHELL, "-c", "echo one; exit 4"], {}) as opened, pytest.raises(ScreenError, match="ended with 4"):
        opened.see("two", 20)


def test_a_line_that_was_written_over_is_shown_once() -> None:
    assert plain("\x1b[2KUnpacking 1%\r\x1b[2KUnpacking 100%\r\n\x1b[32mdone\x1b[0m\r\n") == "Unpacking 100%\ndone\n"


def test_a_character_cut_in_two_is_whole_again() -> None:
    ours, theirs = os.pipe()
    opened = Terminal(subprocess.Popen([SHELL, "-c", "exit"]), ours)
    for part in (b"\xe2\x96", b"\x88"):
        os.write(theirs, part)
        assert opened.read(1)
    assert opened.screen == "█"
    os.close(ours)
    os.close(theirs)
    opened.process.wait(5)


def _scripted(tmp_path: Path, stack: ExitStack, script: str) -> Scene:
    """A scene whose program answers every command line with `script`."""
    path = tmp_path / "scripted"
    path.write_text(f"#!{SHELL}\n{script}\n" + "#" * 4096 + "\n")
    path.chmod(0o755)
    return stack.enter_context(scene(tmp_path / "scene", path))


SAYS_IT_UNPACKS = "echo 'Unpacking the runtime…' >&2"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (f"{SAYS_IT_UNPACKS}; exit 0", "exit code 0"),
        (f"{SAYS_IT_UNPACKS}; {shutil.which('mkdir')} -p $HOME/.cache/vramancer/runtime-x; echo error: x >&2; exit 1",
         "left in the cache"),
        (f"{SAYS_IT_UNPACKS}; {shutil.which('mkdir')} -p $TMPDIR/_MEI1; echo error: x >&2; exit 1", "left in TMPDIR"),
    ],
)  # fmt: skip
def test_a_damaged_file_that_is_not_refused_is_a_failure(script: str, words: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        played = _scripted(tmp_path, stack, script)
        with pytest.raises(StepError, match=words):
            refuses_a_damaged_file(played)


def test_no_file_may_grow_where_room_runs_out(tmp_path: Path) -> None:
    """As the real program does: what it could not write is its exit code."""
    write = f"{sys.executable} -c \"open('$TMPDIR/x', 'wb').truncate(70_000_000)\" 2>&1"
    remove = f"{shutil.which('rm')} -f $TMPDIR/x"
    with ExitStack() as stack:
        script = f"{write} && exit 0; {remove}; echo 'error: There is no room.' >&2; exit 1"
        assert "no room" in runs_out_of_room(_scripted(tmp_path, stack, script))


def test_a_log_keeps_what_was_run_since_it_began(program: Path, tmp_path: Path) -> None:
    machine = Machine.with_copy(tmp_path / "machine", program, Log())
    machine.run("echo one")
    machine.log.begin()
    machine.run("echo two")
    assert machine.log.text() == "$ vramancer echo two\ntwo\n(exit code 0)"
