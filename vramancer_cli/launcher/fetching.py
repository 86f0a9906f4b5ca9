"""Fetching the packed runtime from a URL that a person named: resumable, bounded, and kept only if its hash is right.

urllib only. Never a terminal: progress is yielded.
"""

from __future__ import annotations

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import urlsplit

from vramancer_cli.errors import UsageError, VramancerError
from vramancer_cli.launcher.bundle import Payload
from vramancer_cli.launcher.payload import Packed

PART_PREFIX: Final = ".fetching-"
SILENCE_S: Final = 30.0
TRIES: Final = 5
PAUSE_S: Final = 1.0
_CHUNK_BYTES: Final = 1024 * 1024


class FetchError(VramancerError):
    """The runtime could not be fetched."""

    exit_code = 3
    hint = "What came so far is kept: try again, or check VRM_RUNTIME_URL."


class WrongRuntimeError(VramancerError):
    """What was fetched is not the runtime that this program was built with, so it was thrown away."""

    hint = "VRM_RUNTIME_URL must name the file that was built together with this program."


class _WrongSizeError(Exception):
    """The server's file has another size."""


def runtime_url(given: str, payload: Payload) -> str:
    """The file's URL: as given, or, where that ends with a slash, in that folder. Raises UsageError."""
    parts = urlsplit(given)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(f"'{given}' is not an address to fetch from.", hint="It begins with https:// or http://.")
    return given + payload.file_name if given.endswith("/") else given


def part_file(cache: Path, payload: Payload) -> Path:
    return cache / f"{PART_PREFIX}{payload.file_name}"


def fetch(url: str, payload: Payload, target: Path, pause_s: float = PAUSE_S) -> Generator[int, None, Packed]:
    """Fetches into `target`, goes on where an earlier try ended, and yields how many bytes are there.

    Raises FetchError (what came is kept) and WrongRuntimeError (nothing is).
    """
    last: Exception | None = None
    for attempt in range(TRIES):
        if attempt:
            time.sleep(pause_s * attempt)
        try:
            yield from _go_on(url, payload, target)
            return _checked(target, payload)
        except _WrongSizeError:
            target.unlink(missing_ok=True)
            raise WrongRuntimeError from None
        except urllib.error.HTTPError as error:
            raise FetchError(f"{url} answers {error.code} {error.reason}.") from error
        except (OSError, http.client.HTTPException) as error:
            last = error
    raise FetchError(f"{url} cannot be fetched: {_words(last)}.") from last


def _words(error: Exception | None) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason or "the connection broke").rstrip(".")


def _go_on(url: str, payload: Payload, target: Path) -> Generator[int, None, None]:
    with target.open("ab") as file:
        file.seek(0, 2)
        if file.tell() > payload.packed_bytes:
            file.truncate(0)
        while file.tell() < payload.packed_bytes:
            yield from _receive(url, payload, file)


def _receive(url: str, payload: Payload, file: BinaryIO) -> Generator[int, None, None]:
    """One answer of the server. Raises OSError where it ends early, so that the next try goes on from there."""
    there_bytes = file.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={there_bytes}-"} if there_bytes else {})  # noqa: S310
    with urllib.request.urlopen(request, timeout=SILENCE_S) as answer:  # noqa: S310  # http or https: runtime_url
        if there_bytes and answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            file.truncate(0)  # it does not know ranges, and sends everything again
            file.seek(0)
        _check_size(answer, payload.packed_bytes - file.tell())
        while file.tell() < payload.packed_bytes:
            data = answer.read(min(_CHUNK_BYTES, payload.packed_bytes - file.tell()))
            if not data:
                raise ConnectionError("the connection broke")
            file.write(data)
            yield file.tell()


def _check_size(answer: Any, missing_bytes: int) -> None:
    told = answer.headers.get("Content-Length")
    if told is not None and told != str(missing_bytes):
        raise _WrongSizeError


def _checked(target: Path, payload: Payload) -> Packed:
    """All of it is hashed before a byte of it is looked at."""
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != payload.digest:
        target.unlink()
        raise WrongRuntimeError
    return Packed(target, 0)
