"""Bringing the runtime that belongs to this launcher into the cache, from wherever its packed form is."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from vramancer_cli.errors import VramancerError
from vramancer_cli.launcher import cache
from vramancer_cli.launcher.bundle import Payload
from vramancer_cli.launcher.fetching import fetch, part_file, runtime_url
from vramancer_cli.launcher.payload import Packed, beside, embedded
from vramancer_cli.launcher.unpacking import unpack

UNPACKING_DEADLINE_S: Final = 600.0
DAMAGED_DEADLINE_S: Final = 10.0
POLL_S: Final = 0.3

Stage = Literal["waiting", "fetching", "unpacking"]


@dataclass(frozen=True, slots=True)
class Progress:
    """`waiting`: another process unpacks it just now (no figures). Else packed bytes done and in all."""

    stage: Stage
    done_bytes: int = 0
    all_bytes: int = 0


class NoRuntimeError(VramancerError):
    """This program comes without its runtime."""


def prepare(folder: Path, payload: Payload, launcher: Path, url: str | None = None) -> Generator[Progress, None, Path]:
    """The runtime's executable in the cache `folder`, whole; yields only where there is something to wait for.

    `launcher` is this program's own file, `url` where a person said that the packed runtime can be fetched.
    Raises CacheFolderError, CacheBusyError, PayloadError, NoRoomError, FetchError, ... and leaves nothing half-made.
    """
    runtime = cache.runtime_folder(cache.open_folder(folder), payload)
    started_s = time.monotonic()
    while not cache.is_whole(runtime, payload):
        with cache.alone(folder, payload.name) as free:
            if free:
                cache.remove_leftovers(folder, payload.name)
                if not cache.is_whole(
                    runtime, payload
                ):  # looked at before the lock: another start may have ended since
                    yield from _bring(runtime, payload, launcher, url)
                break
        _check_patience(runtime, time.monotonic() - started_s)
        yield Progress("waiting")
        time.sleep(POLL_S)
    return runtime / payload.program


def _check_patience(runtime: Path, waited_s: float) -> None:
    """Raises CacheBusyError. Somebody else holds the lock: who unpacks will end, who runs a damaged one will not."""
    if waited_s > (DAMAGED_DEADLINE_S if runtime.exists() else UNPACKING_DEADLINE_S):
        raise cache.CacheBusyError


def _bring(runtime: Path, payload: Payload, launcher: Path, url: str | None) -> Generator[Progress, None, None]:
    cache.set_aside(runtime)
    packed = _packed_here(payload, launcher)
    if packed is None:
        packed = yield from _fetched(runtime.parent, payload, url)
    for done_bytes in unpack(packed, payload, runtime):
        yield Progress("unpacking", done_bytes, payload.packed_bytes)
    part_file(runtime.parent, payload).unlink(missing_ok=True)


def _packed_here(payload: Payload, launcher: Path) -> Packed | None:
    return embedded(launcher) if payload.embedded else beside(launcher, payload.file_name)


def _fetched(folder: Path, payload: Payload, url: str | None) -> Generator[Progress, None, Packed]:
    if not url:
        raise NoRuntimeError(hint=f"Put {payload.file_name} beside it, or set VRM_RUNTIME_URL to where that file is.")
    fetching = fetch(runtime_url(url, payload), payload, part_file(folder, payload))
    while True:
        try:
            yield Progress("fetching", next(fetching), payload.packed_bytes)
        except StopIteration as done:
            return done.value
