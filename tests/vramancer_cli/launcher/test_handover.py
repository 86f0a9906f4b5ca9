from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.tiny_runtime import TinyRuntime, tiny_runtime
from vramancer_cli.launcher import cache
from vramancer_cli.launcher.entering import prepare
from vramancer_cli.launcher.handover import hold_own, runtime_environment

BECOME = """
import sys
from pathlib import Path
from vramancer_cli.launcher import cache
from vramancer_cli.launcher.handover import become
program = Path(sys.argv[1])
lock = cache.hold(Path(sys.argv[2]), sys.argv[3])
become(program, sys.argv[4:], lock)
"""


def make(tmp_path: Path, program: str) -> tuple[TinyRuntime, Path, Path]:
    (tmp_path / "made").mkdir()
    tiny, folder = tiny_runtime(tmp_path / "made", program), tmp_path / "cache"
    list(prepare(folder, tiny.payload, tiny.launcher))
    return tiny, folder, folder / tiny.payload.name / tiny.payload.program


def command(tiny: TinyRuntime, folder: Path, program: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-c", BECOME, str(program), str(folder), tiny.payload.name, *arguments]


def test_the_process_becomes_the_runtime(tmp_path: Path) -> None:
    tiny, folder, program = make(tmp_path, '#!/bin/sh\necho "$$ $*"\nexit 7\n')
    ran = subprocess.Popen(command(tiny, folder, program, "start", "--a b"), stdout=subprocess.PIPE, text=True)
    said, _ = ran.communicate(timeout=30)
    assert said == f"{ran.pid} start --a b\n"
    assert ran.returncode == 7


def test_the_runtime_is_in_use_for_as_long_as_it_runs(tmp_path: Path) -> None:
    tiny, folder, program = make(tmp_path, "#!/bin/sh\necho up\nread line\n")
    with subprocess.Popen(
        command(tiny, folder, program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as ran:
        assert ran.stdout is not None
        assert ran.stdout.readline() == "up\n"
        assert cache.is_busy(folder, tiny.payload.name)
        assert not cache.remove(folder, tiny.payload.name)
        ran.communicate("end\n", timeout=30)
    assert cache.remove(folder, tiny.payload.name)


def test_a_runtime_that_does_not_start_is_one_sentence(tmp_path: Path) -> None:
    tiny, folder, program = make(tmp_path, "#!/bin/sh\n")
    program.chmod(0o644)
    ran = subprocess.run(command(tiny, folder, program), capture_output=True, text=True, timeout=30)
    assert ran.returncode == 1
    assert "HandoverError" in ran.stderr
    assert "does not start" in ran.stderr


def test_the_environment_is_the_users_again(tmp_path: Path) -> None:
    frozen = {"LD_LIBRARY_PATH": "/tmp/_MEIx", "LD_LIBRARY_PATH_ORIG": "/opt/lib", "HOME": "/home/a"}
    assert runtime_environment(frozen, tmp_path) == {
        "LD_LIBRARY_PATH": "/opt/lib",
        "HOME": "/home/a",
        "PYINSTALLER_RESET_ENVIRONMENT": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
    }
    assert "LD_LIBRARY_PATH" not in runtime_environment({"LD_LIBRARY_PATH": "/tmp/_MEIx"}, tmp_path)


def test_a_user_who_names_torchs_folder_is_heard(tmp_path: Path) -> None:
    assert runtime_environment({"TORCHINDUCTOR_CACHE_DIR": "/x"}, tmp_path)["TORCHINDUCTOR_CACHE_DIR"] == "/x"


def test_a_runtime_marks_itself_as_in_use(tmp_path: Path) -> None:
    tiny, folder, program = make(tmp_path, "#!/bin/sh\n")
    held = hold_own(program)
    assert held is not None
    assert cache.is_busy(folder, tiny.payload.name)
    held.close()
    assert hold_own(Path(sys.executable)) is None


PRESSED = """
import sys, time
from vramancer_cli.launcher.handover import _count_each_press_once
_count_each_press_once()
presses, said = 0, "up"
while presses < 2:
    try:
        print(said, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        presses, said = presses + 1, "pressed"
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_one_ctrl_c_that_arrives_twice_counts_once(tmp_path: Path) -> None:
    import signal

    with subprocess.Popen([sys.executable, "-c", PRESSED], stdout=subprocess.PIPE, text=True) as ran:
        assert ran.stdout is not None
        assert ran.stdout.readline() == "up\n"
        ran.send_signal(signal.SIGINT)
        assert ran.stdout.readline() == "pressed\n"
        ran.send_signal(signal.SIGINT)  # the bootloader's copy of the same press
        time.sleep(1)
        ran.send_signal(signal.SIGINT)  # a person, a second later
        assert ran.stdout.read() == "", "the second press ends it; the copy did not"
    assert ran.returncode == 0
