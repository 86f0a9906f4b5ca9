"""Large files of the hub's cache: downloaded so that nothing comes twice, and held against the hash the hub gave.

The hub's cache names every file for its hash: SHA-256 for large ones, git's SHA-1 for small ones. A large one is
fetched beside its place, hashed, and only then put there. Blocking. Never torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from vramancer_cli.errors import ModelError
from vramancer_cli.models.folder import one_line
from vramancer_cli.runtime import whole_file
from vramancer_cli.runtime.claim import try_lock

SPARE_BYTES: Final = 64 << 20
TRIES: Final = 5
"""In a row, without a byte more: then the download is given up, and what has come stays."""
_RETRY_S: Final = 1.0
_DEADLINE_S: Final = 30.0
"""For a connection, and for the next bytes of one."""
_LOCK_POLL_S: Final = 0.5
_LOCK_DEADLINE_S: Final = 7200.0
_PART_SUFFIX: Final = ".vramancer-part"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_GIT_SHA1: Final = re.compile(r"[0-9a-f]{40}")
_MOST_VERIFIED: Final = 150

Done = Callable[[int, int], None]
"""(bytes there, bytes in all)"""


@dataclass(frozen=True, slots=True)
class Blob:
    """A large file of a repository, and what the hub says it is."""

    name: str
    size_bytes: int
    sha256: str


class Verified:
    """Which files were found right, with their size and date then: those are not hashed again. `path` None: forgets."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, list[int]] = {}
        data = whole_file.read(path) if path is not None else None
        try:
            found: Any = json.loads(data or b"{}")
            self._known = {str(name): [int(size), int(date)] for name, (size, date) in found.items()}
        except (ValueError, TypeError, AttributeError):
            self._known = {}  # written by another program: all is hashed again

    def knows(self, file: Path) -> bool:
        return self._known.get(str(file.resolve())) == _facts(file)

    def note(self, files: Iterable[Path]) -> None:
        for file in files:
            self._known[str(file.resolve())] = _facts(file)
        if self._path is not None:
            latest = dict(list(self._known.items())[-_MOST_VERIFIED:])
            whole_file.write(self._path, json.dumps(latest).encode())


def damaged_in(folder: Path, verified: Verified) -> list[Path]:
    """The files of a snapshot that have not the hash they are named for. Large ones found right are remembered."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    wrong = [path for path in files if not verified.knows(path) and not _is_right(path)]
    hashed = [path for path in files if path not in wrong and _SHA256.fullmatch(path.resolve().name)]
    fresh = [path for path in hashed if not verified.knows(path)]
    if fresh:
        verified.note(fresh)
    return wrong


def download(repository: str, commit: str, blobs: Sequence[Blob], folder: Path, done: Done) -> None:
    """Bring those that are missing, and link them into the snapshot `folder`. Raises ModelError, OSError, httpx2's."""
    from huggingface_hub import hf_hub_download

    place = folder.parent.parent / "blobs"
    place.mkdir(parents=True, exist_ok=True)
    missing = [blob for blob in blobs if not _has(place, blob)]
    total_bytes = sum(blob.size_bytes for blob in missing)
    _check_room(place, sum(blob.size_bytes - _part_bytes(place, blob) for blob in missing))
    before_bytes = 0
    for blob in missing:
        _bring(repository, commit, blob, place, lambda d, b=before_bytes: done(b + d, total_bytes))
        before_bytes += blob.size_bytes
    for blob in blobs:
        hf_hub_download(repository, blob.name, revision=commit)


def _has(place: Path, blob: Blob) -> bool:
    path = place / blob.sha256
    return path.is_file() and path.stat().st_size == blob.size_bytes


def _part(place: Path, blob: Blob) -> Path:
    return place / f"{blob.sha256}{_PART_SUFFIX}"


def _part_bytes(place: Path, blob: Blob) -> int:
    part = _part(place, blob)
    return min(part.stat().st_size, blob.size_bytes) if part.is_file() else 0


def _check_room(place: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(place).free
    if needed_bytes and free_bytes < needed_bytes + SPARE_BYTES:
        needed, free = (-(-size // (1 << 20)) for size in (needed_bytes, free_bytes))
        raise ModelError(
            f"{needed} MiB of the model are missing, and the disk of {place} has {free} MiB free.",
            hint="Free some space, or name a folder on a larger disk in HF_HOME.",
        )


# --- one file -------------------------------------------------------------------------------------------------------


def _bring(repository: str, commit: str, blob: Blob, place: Path, done: Callable[[int], None]) -> None:
    if not _SHA256.fullmatch(blob.sha256):
        raise ModelError(f"The hub gives no proper SHA-256 for {one_line(blob.name)}.")
    part = _part(place, blob)
    with part.open("ab") as lock:
        _wait_for(lock, part)
        if _has(place, blob):  # the other process has brought it
            return
        for is_last in (False, True):
            _fill(repository, commit, blob, part, done)
            if _sha256_of(part) == blob.sha256:
                part.replace(place / blob.sha256)
                return
            os.truncate(part, 0)
            if is_last:
                raise ModelError(
                    f"{one_line(blob.name)} arrived damaged twice: it has not the SHA-256 that the hub gives.",
                    hint="Try again later; if that does not help, the network or this machine's memory changes bytes.",
                )


def _wait_for(lock: BinaryIO, part: Path) -> None:
    until = time.monotonic() + _LOCK_DEADLINE_S
    while not try_lock(lock):
        if time.monotonic() > until:
            raise ModelError(f"Another process has been fetching {part.name} for too long.")
        time.sleep(_LOCK_POLL_S)


def _fill(repository: str, commit: str, blob: Blob, part: Path, done: Callable[[int], None]) -> None:
    """Until the part is as long as it should be. A connection that breaks is taken up where it broke."""
    import httpx2

    tries = 0
    while (have := part.stat().st_size) < blob.size_bytes:
        try:
            _go_on(repository, commit, blob, part, have, done)
        except httpx2.TransportError:
            tries = 0 if part.stat().st_size > have else tries + 1
            if tries >= TRIES:
                raise
            time.sleep(_RETRY_S)
    if have > blob.size_bytes:
        os.truncate(part, 0)
        _fill(repository, commit, blob, part, done)


def _go_on(repository: str, commit: str, blob: Blob, part: Path, have: int, done: Callable[[int], None]) -> None:
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = hf_hub_url(repository, blob.name, revision=commit)
    headers = {**build_hf_headers(), "Range": f"bytes={have}-", "Accept-Encoding": "identity"}
    session = get_session()
    with session.stream("GET", url, headers=headers, follow_redirects=True, timeout=_DEADLINE_S) as response:
        hf_raise_for_status(response)
        if response.status_code != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # it sends the whole file
        with part.open("r+b") as file:
            file.truncate(have)
            file.seek(have)
            for chunk in response.iter_raw():
                have += len(chunk)
                if have > blob.size_bytes:
                    raise ModelError(f"The hub sends more of {one_line(blob.name)} than it said there is.")
                file.write(chunk)
                done(have)
            file.flush()
            os.fsync(file.fileno())
    if have < blob.size_bytes:
        raise _cut_short(have, blob)


def _cut_short(have: int, blob: Blob) -> Exception:
    import httpx2

    return httpx2.RemoteProtocolError(f"{blob.name} ended after {have} of {blob.size_bytes} bytes")


# --- hashes ---------------------------------------------------------------------------------------------------------


def _is_right(path: Path) -> bool:
    """Whether it has the hash that it is named for; where the cache has no such names, nothing can be said."""
    name = path.resolve().name
    if _SHA256.fullmatch(name):
        return _sha256_of(path) == name
    if _GIT_SHA1.fullmatch(name):
        data = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == name
    return True


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _facts(file: Path) -> list[int]:
    facts = file.stat()
    return [facts.st_size, facts.st_mtime_ns]
