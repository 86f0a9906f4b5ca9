"""Where a node finds a checkpoint: the built-in one, a folder, or the hub's cache (filled by `hub`).

`shelf` is where this node keeps what it remembers of models between starts; None: nothing. Never imports torch;
blocking work runs in threads.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from transport.messages import ModelRef
from transport.types import ModelSource
from vramancer_cli.errors import VramancerError
from vramancer_cli.models.catalog import builtin_folder, classify
from vramancer_cli.models.folder import check_folder, check_tokenizer
from vramancer_cli.runtime import hub
from vramancer_cli.runtime.hub import Progress
from vramancer_cli.runtime.hub_blobs import Verified

VERIFIED_NAME: Final = "hub-verified.json"


def silent(_what: str, _done_bytes: int, _all_bytes: int) -> None:
    """A Progress for when nobody watches."""


async def locate(source: ModelSource, location: str, shelf: Path | None = None, progress: Progress = silent) -> Path:
    """The local folder of a checkpoint, looked through before anything is opened. Raises ModelError.

    Downloads from the hub what is not in its cache.
    """
    if source == "builtin":
        return builtin_folder()
    if source == "folder":
        return await asyncio.to_thread(_folder, location)
    return await asyncio.to_thread(_from_hub, location, shelf, progress)


async def locate_choice(
    model: str | None, shelf: Path | None = None, progress: Progress = silent
) -> tuple[ModelSource, str, Path]:
    """`--model` as the user gave it: its source, location and folder, for the node that reads text.

    Raises ModelError.
    """
    source, location = classify(model)
    folder = await locate(source, location, shelf, progress)
    await asyncio.to_thread(check_tokenizer, folder)
    return source, str(folder) if source == "folder" else location, folder


async def locate_ref(ref: ModelRef) -> Path:
    return await locate(ref.source, ref.location)


async def locate_own(ref: ModelRef, shelf: Path | None = None) -> Path | None:
    """A folder of this machine that may hold the head's model; nothing is fetched. None where there is none."""
    try:
        return await asyncio.to_thread(_own, ref, shelf)
    except (VramancerError, OSError):
        return None


def _own(ref: ModelRef, shelf: Path | None) -> Path | None:
    if ref.source == "builtin":
        return builtin_folder()
    if ref.source == "folder":
        return _folder(ref.location)
    folder = hub.cached(ref.location, _verified(shelf))
    if folder is not None:
        check_folder(folder)
    return folder


def _folder(location: str) -> Path:
    folder = Path(location).expanduser().resolve()
    check_folder(folder)
    return folder


def _from_hub(location: str, shelf: Path | None, progress: Progress) -> Path:
    folder = hub.fetch(location, _verified(shelf), progress)
    check_folder(folder)
    return folder


def _verified(shelf: Path | None) -> Verified:
    return Verified(shelf / VERIFIED_NAME if shelf is not None else None)
