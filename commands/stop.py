"""`vramancer stop`: end the node that runs out of a state folder, politely, then not."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from commands import options
from commands.terminal import out
from vramancer_cli.errors import DaemonUnreachableError, VramancerError
from vramancer_cli.runtime import run_file
from vramancer_cli.runtime.run_file import RunRecord

if TYPE_CHECKING:
    import psutil

EXAMPLES = """[bold]Examples[/]

  vramancer stop
  vramancer stop --state-dir ./second-node

It ends in order; after 15 s it is killed. Exits with 3 when no node runs."""

POLITE_S: Final = 15.0
KILLED_S: Final = 5.0
_POLL_S: Final = 0.05


@options.spread
def stop(state_dir: options.StateDir = options.DEFAULT_STATE_FOLDER) -> None:
    """Stop the node that runs on this machine."""
    folder = options.state_folder(state_dir)
    record = run_file.running(folder)
    if record is None:
        raise DaemonUnreachableError(f"No node runs out of {folder}.", hint="Another folder is named with --state-dir.")
    killed = _end(record)
    run_file.clear(folder, record)
    how = f"killed: it did not end within {POLITE_S:.0f} s" if killed else "stopped"
    out().print(f"pid {record.pid} ({record.api_url}): {how}", markup=False, soft_wrap=True)


def _end(record: RunRecord) -> bool:
    """Whether it had to be killed. `running()` compared the start time, and psutil does so again before it signals."""
    import psutil

    try:
        process = psutil.Process(record.pid)
        process.terminate()
        return not _gone(process, POLITE_S) and _kill(process)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied as error:
        raise VramancerError(
            f"The node (pid {record.pid}) belongs to somebody else.", hint="Stop it as the user who started it."
        ) from error


def _gone(process: psutil.Process, within_s: float) -> bool:
    """Whether it ended in time. A zombie has ended: only its parent has not looked yet."""
    import psutil

    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(_POLL_S)
    return False


def _kill(process: psutil.Process) -> bool:
    process.kill()
    if not _gone(process, KILLED_S):
        raise VramancerError(f"pid {process.pid} does not end, not even when killed.")
    return True
