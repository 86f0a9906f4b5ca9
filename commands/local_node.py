"""The node that runs out of a state folder here, and the way to its API. Never imports torch or transport."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from commands.options import ApiFlags, state_folder
from vramancer_cli.errors import VramancerError
from vramancer_cli.runtime import run_file
from vramancer_cli.serving import cluster_ca, keys
from vramancer_cli.serving.client import ApiClient
from vramancer_cli.serving.keys import KeyRecord
from vramancer_cli.settings import API_PORT, LOOPBACK

if TYPE_CHECKING:
    from vramancer_cli.runtime.state_folder import StateFolder

DEFAULT_URL: Final = f"http://{LOOPBACK}:{API_PORT}"


class AlreadyRunningError(VramancerError):
    """A node already runs out of this state folder."""

    hint = "Stop it with 'vramancer stop', or name another folder with --state-dir."


def client_for(flags: ApiFlags) -> ApiClient:
    """The API at --url or VRM_URL, else of the node that runs here, else at the usual port.

    The node that runs here lets the owner of its folder in, by the keys that it keeps there.
    """
    folder = state_folder(flags.state_dir)
    running = None if flags.url else _running_url(folder)
    url = flags.url or running or DEFAULT_URL
    ca_pem = cluster_ca.read_pem(folder) if url.startswith("https:") else None
    return ApiClient(url, flags.api_token, own_key=_own_key(folder) if running else None, ca_pem=ca_pem)


def _own_key(folder: Path) -> KeyRecord | None:
    """The one that opens most."""
    now = time.time()
    usable = [key for key in keys.read(folder) if key.role != "metrics" and not key.ended(now)]
    return min(usable, key=lambda key: key.role, default=None)  # "admin" comes before "user"


def _running_url(folder: Path) -> str | None:
    record = run_file.running(folder)
    return record.api_url if record else None


def open_folder(path: Path) -> StateFolder:
    from vramancer_cli.runtime.state_folder import StateFolder

    return StateFolder(path)


def refuse_second(path: Path) -> None:
    """Raises AlreadyRunningError where a node runs out of this folder: two would fight over one identity."""
    record = run_file.running(path)
    if record is not None:
        raise AlreadyRunningError(f"A node already runs out of {path}: pid {record.pid}, {record.api_url}.")
