"""`--detach`: the same command again as a process of its own, and waiting until it answers.

Never imports torch or transport.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from commands.terminal import out, plain, waiting
from vramancer_cli.errors import VramancerError
from vramancer_cli.runtime import run_file
from vramancer_cli.runtime.run_file import RunRecord

LOG_FILE: Final = "node.log"
DEADLINE_S: Final = 180.0
_POLL_S: Final = 0.1
_LOG_TAIL_BYTES: Final = 4096


class BackgroundError(VramancerError):
    """The node in the background did not start."""


def start_and_tell(folder: Path, arguments: Sequence[str]) -> None:
    """Starts this program with `arguments` in the background and prints its pid and URL. Raises BackgroundError."""
    log = folder / LOG_FILE
    process = _launch(own_command(arguments), log)
    with waiting("starting in the background…"):
        record = _wait_live(process, folder, log)
    console = out()
    console.print(f"VRAMancer answers at {record.api_url} (pid {record.pid})", markup=False, soft_wrap=True)
    console.print(f"  log   {log}", markup=False, soft_wrap=True)
    if record.role == "head":
        console.print("  join  vramancer invite")
    console.print("  end   vramancer stop")


def own_command(arguments: Sequence[str]) -> list[str]:
    """The command line that runs this program again, in the foreground of its own process."""
    program = [sys.executable] if getattr(sys, "frozen", False) else [sys.executable, "-m", "vramancer_cli"]
    return [*program, *(argument for argument in arguments if argument != "--detach")]


def _launch(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)  # it will hold the pairing code
    with os.fdopen(handle, "wb") as output:
        if sys.platform == "win32":
            flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
            if getattr(sys, "frozen", False):  # out of the job that ends with the launcher (launcher/windows_job)
                flags |= subprocess.CREATE_BREAKAWAY_FROM_JOB
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, creationflags=flags
            )
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)


def _wait_live(process: subprocess.Popen[bytes], folder: Path, log: Path) -> RunRecord:
    """The new node's record, once its API answers. On failure no process stays behind."""
    until = time.monotonic() + DEADLINE_S
    try:
        while time.monotonic() < until:
            if process.poll() is not None:
                raise BackgroundError(_last_words(log), hint=f"All of it: {log}")
            record = run_file.running(folder)
            if record is not None and is_live(record.api_url):
                return record
            time.sleep(_POLL_S)
    except BaseException:
        process.terminate()
        raise
    process.terminate()
    raise BackgroundError(f"The node did not answer within {DEADLINE_S:.0f} s and was stopped.", hint=f"See {log}")


def is_live(api_url: str) -> bool:
    """Whether an HTTP server answers there; which one it is, the run file says."""
    try:
        with urllib.request.urlopen(f"{api_url}/live", timeout=2):  # noqa: S310  # an URL of our own run file
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:  # this system need not trust the cluster's authority to see that it answers
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except OSError:
        return False


def _last_words(log: Path) -> str:
    """The last line that the node wrote before it ended, which is its error where it had one."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
        lines = file.read(_LOG_TAIL_BYTES).decode(errors="replace").strip().splitlines()
    last = plain(lines[-1]).removeprefix("error: ") if lines else ""
    return last or "The node in the background ended without a word."
