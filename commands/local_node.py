"""The node that runs out of a state folder here, and the way to its API. Never imports torch or transport."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from commands.options import ApiFlags, state_folder
from vramancer_cli.errors import VramancerError
from vramancer_cli.serving.client import ApiClient
from vramancer_cli.settings import API_PORT, LOOPBACK

if TYPE_CHECKING:
    from vramancer_cli.runtime.state_folder import RunRecord, StateFolder

DEFAULT_URL: Final = f"http://{LOOPBACK}:{API_PORT}"


class AlreadyRunningError(VramancerError):
    """A node already runs out of this state folder."""

    hint = "Stop it with 'vramancer stop', or name another folder with --state-dir."


def client_for(flags: ApiFlags) -> ApiClient:
    """The API at --url or VRM_URL, else of the node that runs here, else at the usual port."""
    return ApiClient(flags.url or _running_url(flags.state_dir) or DEFAULT_URL, flags.api_token)


def _running_url(state_dir: Path) -> str | None:
    folder = state_folder(state_dir)
    if not (folder / "run.json").exists():  # the usual case on a machine that only looks: nothing more to import
        return None
    record = open_folder(folder).running()
    return record.api_url if record else None


def open_folder(path: Path) -> StateFolder:
    from vramancer_cli.runtime.state_folder import StateFolder

    return StateFolder(path)


def refuse_second(path: Path) -> None:
    """Raises AlreadyRunningError where a node runs out of this folder: two would fight over one identity."""
    record: RunRecord | None = open_folder(path).running()
    if record is not None:
        raise AlreadyRunningError(f"A node already runs out of {path}: pid {record.pid}, {record.api_url}.")
