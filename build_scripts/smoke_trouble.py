"""The second half of the smoke test: the warm cache, two starts at once, killed nodes, and damaged files.

Needs nothing but the file under test: no torch, none of our rooms.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from build_scripts.frozen_program import START_DEADLINE_S, UNPACKING, Machine, answers, wait_ready
from build_scripts.pseudo_terminal import Terminal
from build_scripts.smoke_scene import (
    END_S,
    START,
    Scene,
    card_of,
    expect,
    expect_no_halves,
    expect_nothing_left,
    expect_refusal,
    wait_for,
)

LARGEST_FILE_BYTES: Final = 64_000_000
"""The launcher's own files are smaller, the runtime's largest one is not."""
SMALL_DISK_BYTES: Final = 48_000_000


def starts_again_at_once(scene: Scene) -> str:
    """From the warm cache, without a word of unpacking; then the node is killed, and the launcher cleans up."""
    with scene.desk.terminal(*START) as opened:
        _ready_url(opened)
        expect(UNPACKING not in opened.transcript, "it unpacked again")
        pid = _node_pid(scene.desk)
        os.kill(pid, signal.SIGKILL)
        code = opened.end(END_S)
    expect(code != 0, "a killed node ended with 0")
    expect_nothing_left(scene.desk)
    return f"killed pid {pid}: exit code {code}"


def _ready_url(opened: Terminal) -> str:
    card = card_of(opened, START_DEADLINE_S)
    found = re.search(r"answers at (http://\S+)", card)
    assert found is not None
    wait_ready(opened, found[1])
    return found[1]


def _node_pid(machine: Machine) -> int:
    return json.loads((machine.state / "run.json").read_text("utf-8"))["pid"]


def starts_in_the_background(scene: Scene) -> str:
    ran = scene.desk.run(*START, "--detach", deadline_s=START_DEADLINE_S)
    found = re.search(r"answers at (http://\S+) \(pid (\d+)\)", ran.out)
    expect(ran.code == 0 and found is not None, f"exit code {ran.code}")
    assert found is not None
    wait_for(lambda: answers(f"{found[1]}/ready"), "the node was not ready", START_DEADLINE_S)
    stopped = scene.desk.run("stop")
    expect(stopped.code == 0 and f"pid {found[2]} " in stopped.out, f"'stop' ended with {stopped.code}")
    expect("killed" not in stopped.out, "it had to be killed")
    expect_nothing_left(scene.desk)
    return f"pid {found[2]}"


def two_starts_unpack_once(scene: Scene) -> str:
    """Two people at one machine, with one empty cache."""
    machine = scene.machine("pair")
    with ExitStack() as stack:
        folders = [machine.state / name for name in ("first", "second")]
        opened = [stack.enter_context(machine.terminal(*START, "--state-dir", str(folder))) for folder in folders]
        wait_for(lambda: _all_show("answers at", opened), "the two did not both come up", START_DEADLINE_S, poll_s=0)
        for one in opened:
            _ready_url(one)
        unpacking = [one for one in opened if UNPACKING in one.transcript]
        expect(len(unpacking) == 1, f"{len(unpacking)} of them unpacked")
        for one in opened:
            one.interrupt()
        codes = [one.end(END_S) for one in opened]
    expect(all(code in (0, 130) for code in codes), f"the exit codes are {codes}")
    expect_no_halves(machine)
    expect_nothing_left(machine)
    _remove(machine)
    return ""


def _all_show(text: str, opened: Sequence[Terminal]) -> bool:
    """Reads all of them: one that is full would block its program, and with it the one that waits for it."""
    for one in opened:
        one.read(0.05)
        expect(one.process.poll() is None, f"one of them ended with {one.process.returncode}")
    return all(text in one.transcript for one in opened)


def refuses_a_damaged_file(scene: Scene) -> str:
    """One bit of the packed runtime is another one."""
    machine = scene.machine("damaged")
    _flip(machine.program, machine.program.stat().st_size // 2)
    ran = machine.run(*START)
    expect(f"{UNPACKING} runtime" in ran.err.splitlines()[0], "without a terminal, no line says that it unpacks")
    line = expect_refusal(ran.code, ran.err)
    _expect_empty_cache(machine.cache)
    expect_nothing_left(machine)
    _remove(machine)
    return line


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def mends_a_damaged_runtime(scene: Scene) -> str:
    """The largest file of the unpacked runtime lost its end: it is unpacked again, and starts."""
    largest = max(_files(scene.desk.cache), key=lambda path: path.stat().st_size)
    size_bytes = largest.stat().st_size
    os.truncate(largest, size_bytes // 2)
    with scene.desk.terminal(*START) as opened:
        _ready_url(opened)
        expect(UNPACKING in opened.transcript, "it did not unpack again")
        opened.interrupt()
        opened.end(END_S)
    expect(largest.stat().st_size == size_bytes, f"{largest.name} is still damaged")
    expect_no_halves(scene.desk)
    expect_nothing_left(scene.desk)
    return largest.name


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def refuses_an_open_cache(scene: Scene) -> str:
    """Others may write into the folder that programs run from."""
    scene.desk.cache.chmod(0o777)
    ran = scene.desk.run(*START)
    scene.desk.cache.chmod(0o700)
    line = expect_refusal(ran.code, ran.err)
    expect("Other users may write" in line and "chmod 700" in line, "it does not say what is wrong, and what to do")
    expect_nothing_left(scene.desk)
    return "refused"


def refuses_a_foreign_cache(scene: Scene) -> str:
    """The folder belongs to another user. Only root can make it so."""
    if os.geteuid() != 0:
        return "not tried: only root can give a folder away"
    folder = scene.root / "foreign"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, -1)
    ran = scene.desk.run(*START, VRM_CACHE_DIR=str(folder))
    expect("another user" in expect_refusal(ran.code, ran.err), "it does not say that it belongs to another user")
    expect(not list(folder.iterdir()), "something was written into it")
    return "refused"


def needs_room(scene: Scene) -> str:
    """A disk that is too small, seen before anything is written; where nothing can be mounted, that is left out."""
    with _small_disk(scene.root / "small") as disk:
        if disk is None:
            return "not tried: nothing can be mounted here"
        ran = scene.desk.run(*START, VRM_CACHE_DIR=str(disk))
        line = expect_refusal(ran.code, ran.err)
        expect("MB" in line and str(disk) in line, "it does not say how much is needed where")
        _expect_empty_cache(disk)
    return line


def runs_out_of_room(scene: Scene) -> str:
    """In the middle of unpacking, no file may grow any more."""
    folder = scene.root / "full"
    ran = scene.desk.run(*START, VRM_CACHE_DIR=str(folder), file_limit_bytes=LARGEST_FILE_BYTES)
    line = expect_refusal(ran.code, ran.err)
    expect("no room" in line, "it does not say that there is no room")
    _expect_empty_cache(folder)
    expect_nothing_left(scene.desk)
    return line


@contextmanager
def _small_disk(folder: Path) -> Iterator[Path | None]:
    folder.mkdir(mode=0o700)
    size = f"size={SMALL_DISK_BYTES},mode=700"
    mount = shutil.which("mount")
    done = mount and subprocess.run([mount, "-t", "tmpfs", "-o", size, "tmpfs", folder], capture_output=True)
    try:
        yield folder if done and done.returncode == 0 else None
    finally:
        if done and done.returncode == 0:
            subprocess.run(["umount", folder], check=True)


def _expect_empty_cache(folder: Path) -> None:
    left = [path.name for path in folder.iterdir() if not path.name.endswith(".lock")] if folder.exists() else []
    expect(not left, f"left in the cache: {left}")


def _remove(machine: Machine) -> None:
    """Its cache and its copy of the file are large."""
    shutil.rmtree(machine.folder)


def cleans_its_cache(scene: Scene) -> str:
    """Last: the runtime that is in use stays, one that is not goes."""
    with scene.desk.terminal(*START) as opened:
        _ready_url(opened)
        kept = scene.desk.run("cache", "clean", "--all", "--json").json()
        expect(not kept["removed"] and len(kept["in_use"]) == 1, "it removed what a node runs out of")
        opened.interrupt()
        opened.end(END_S)
    gone = scene.desk.run("cache", "clean", "--all", "--json").json()
    expect(len(gone["removed"]) == 1 and not list(scene.desk.cache.iterdir()), "it left something in the cache")
    expect_nothing_left(scene.desk)
    return gone["removed"][0]
