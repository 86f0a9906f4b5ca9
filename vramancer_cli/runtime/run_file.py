"""The run file: which program runs out of a state folder, and where it answers.

Only the standard library here, and psutil where a process is looked at: the small verbs import this.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, cast

from vramancer_cli.runtime import whole_file
from vramancer_cli.runtime.whole_file import StateFolderError

RUN_FILE: Final = "run.json"
_MOST_PID: Final = 2**32 - 1
"""Windows counts further than POSIX."""
_MOST_S: Final = 1e11
_URL: Final = re.compile("https?://[!-~]{1,500}", re.ASCII)
"""It is printed and asked: one word of plain characters."""
_CLOCK_SLACK_S: Final = 2.0
"""A process's start time, read twice, may differ by rounding; a reused pid differs by more."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """The program that runs out of a folder: `create_time_s` tells a reused pid from the real one."""

    pid: int
    create_time_s: float
    api_url: str
    node_port: int
    role: Literal["head", "worker"]

    @classmethod
    def of_this_process(cls, api_url: str, node_port: int, role: Literal["head", "worker"]) -> RunRecord:
        import psutil

        pid = os.getpid()
        return cls(pid, psutil.Process(pid).create_time(), api_url, node_port, role)

    def alive(self) -> bool:
        import psutil

        with contextlib.suppress(psutil.Error):
            return abs(psutil.Process(self.pid).create_time() - self.create_time_s) < _CLOCK_SLACK_S
        return False


def read(folder: Path) -> RunRecord | None:
    """What was last written, whether or not that process still lives. Raises StateFolderError; the file stays."""
    path = folder / RUN_FILE
    data = whole_file.read(path)
    try:
        return None if data is None else _record(_fields(data))
    except (ValueError, RecursionError) as error:
        raise whole_file.broken(path, str(error)) from error


def running(folder: Path) -> RunRecord | None:
    """The record of a process that lives now. Raises StateFolderError."""
    record = read(folder)
    return record if record is not None and record.alive() else None


def write(folder: Path, record: RunRecord) -> None:
    """Raises StateFolderError."""
    whole_file.write(folder / RUN_FILE, json.dumps(asdict(record), indent=2).encode())


def clear(folder: Path, record: RunRecord) -> None:
    """Remove `record`, but not the record of a program that was started since."""
    with contextlib.suppress(OSError, StateFolderError):
        if read(folder) == record:
            (folder / RUN_FILE).unlink()


def _fields(data: bytes) -> dict[str, Any]:
    """Raises ValueError (also for text that is not UTF-8), RecursionError."""
    fields: object = json.loads(data.decode(), parse_constant=_refuse_constant)
    if not isinstance(fields, dict):
        raise ValueError("it is not an object")
    return cast(dict[str, Any], fields)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _record(fields: dict[str, Any]) -> RunRecord:
    """Fields that a later version adds are passed over. Raises ValueError."""
    role = fields.get("role")
    if role not in ("head", "worker"):
        raise ValueError("its 'role' is neither head nor worker")
    return RunRecord(
        pid=_whole(fields, "pid", _MOST_PID),
        create_time_s=_seconds(fields, "create_time_s"),
        api_url=_url(fields, "api_url"),
        node_port=_whole(fields, "node_port", 65535),
        role=role,
    )


def _whole(fields: dict[str, Any], name: str, most: int) -> int:
    value: object = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ValueError(f"its '{name}' is not a whole number from 1 to {most}")
    return value


def _seconds(fields: dict[str, Any], name: str) -> float:
    value: object = fields.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= _MOST_S:
        raise ValueError(f"its '{name}' is not a time")
    return float(value)


def _url(fields: dict[str, Any], name: str) -> str:
    value: object = fields.get(name)
    if not isinstance(value, str) or not _URL.fullmatch(value):
        raise ValueError(f"its '{name}' is not the URL of an API")
    return value
