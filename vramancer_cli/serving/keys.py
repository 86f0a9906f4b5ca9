"""API keys: how one is written, what is kept of it, and the file that keeps it. Standard library only.

A key is 256 random bits, so a plain SHA-256 of it is enough at rest: 2^256 keys cannot be tried, and a slow password
hash would only let strangers keep the server busy. Two values are derived from it, each under its own label: the
`digest` recognises a key that is shown, `signing` is the secret of signed requests. Neither gives the key or the other.

The verbs write the file and a running node reads it (serving/key_ring). Never imports aiohttp or msgspec.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import re
import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast, get_args

from vramancer_cli.errors import UsageError
from vramancer_cli.runtime import whole_file
from vramancer_cli.runtime.claim import try_lock
from vramancer_cli.telemetry import security_log
from vramancer_cli.telemetry.security import Kind

KeyRole = Literal["admin", "user", "metrics"]

PREFIX: Final = "vrm_k1_"
KEYS_FILE: Final = "keys.json"
LOCK_FILE: Final = "keys.lock"
MOST_KEYS: Final = 128
MOST_DAYS: Final = 3650
ID_DIGITS: Final = 16
_SECRET_BYTES: Final = 32
_CHECK_LETTERS: Final = 6
_LOCK_S: Final = 5.0
_LOCK_POLL_S: Final = 0.02
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,38}[A-Za-z0-9])?", re.ASCII)
_HEX: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is kept of a key. Times are Unix seconds; `ends_s` None: until it is revoked."""

    name: str
    role: KeyRole
    digest: str = field(repr=False)
    signing: str = field(repr=False)
    created_s: float
    ends_s: float | None = None

    @classmethod
    def of(cls, text: str, name: str, role: KeyRole, created_s: float, ends_s: float | None = None) -> KeyRecord:
        """For any secret text; surrogates stand for bytes that were no UTF-8."""
        raw = text.encode("utf-8", "surrogateescape")
        signing = hmac.digest(raw, b"vramancer request signing 1", "sha256").hex()
        return cls(name, role, digest_of(text), signing, created_s, ends_s)

    @property
    def id(self) -> str:
        """What a signed request calls the key: 16 hex digits, no secret."""
        return self.digest[:ID_DIGITS]

    def ended(self, now: float) -> bool:
        return self.ends_s is not None and now >= self.ends_s


def digest_of(text: str) -> str:
    return hashlib.sha256(b"vramancer api key 1\0" + text.encode("utf-8", "surrogateescape")).hexdigest()


# --- the key's text -----------------------------------------------------------------------------------------


def make_key() -> str:
    """A new key: prefix, 52 letters of secret, 6 letters of checksum."""
    secret = base64.b32encode(secrets.token_bytes(_SECRET_BYTES)).decode().rstrip("=").lower()
    return PREFIX + secret + _check_letters(secret)


def is_mistyped(text: str) -> bool:
    """Whether this was meant to be a key of ours and cannot be one.

    For its owner's own machine only: a server that told a typo from a wrong key would help who guesses.
    """
    body = text.removeprefix(PREFIX)
    return body != text and _check_letters(body[:-_CHECK_LETTERS]) != body[-_CHECK_LETTERS:]


def _check_letters(secret: str) -> str:
    digest = hashlib.sha256(b"vramancer key checksum 1\0" + secret.encode("utf-8", "surrogateescape")).digest()
    return base64.b32encode(digest[:5]).decode()[:_CHECK_LETTERS].lower()


# --- the file -----------------------------------------------------------------------------------------------


def read(folder: Path) -> tuple[KeyRecord, ...]:
    """The keys of a state folder, oldest first. Raises StateFolderError for a broken file, which stays."""
    path = folder / KEYS_FILE
    text = whole_file.read(path)
    try:
        return () if text is None else _decoded(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise whole_file.broken(path, f"{type(error).__name__}: {error}") from error


def add(folder: Path, name: str, role: KeyRole, now: float, days: int | None = None) -> str:
    """The new key, which is kept nowhere. Raises UsageError (name, too many), StateFolderError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot be a key's name.", hint="Use 1 to 40 letters, digits, dots, hyphens or underscores."
        )
    if days is not None and not 1 <= days <= MOST_DAYS:
        raise UsageError(f"A key is good for 1 to {MOST_DAYS} days.", hint="Leave --days out for one without an end.")
    key = make_key()
    record = KeyRecord.of(key, name, role, now, None if days is None else now + days * 86400)
    with _locked(folder):
        known = read(folder)
        if any(other.name == name for other in known):
            raise UsageError(f"There is a key '{name}' already.", hint=f"See 'vramancer keys revoke {name}'.")
        if len(known) >= MOST_KEYS:
            raise UsageError(f"There are {MOST_KEYS} keys already.", hint="Revoke one with 'vramancer keys revoke'.")
        _write(folder, (*known, record))
    security_log.note_now(folder, Kind.KEY_ADDED, key=name, role=role)
    return key


def revoke(folder: Path, name: str) -> KeyRecord:
    """The key that was taken away. Raises UsageError where there is none of that name, StateFolderError."""
    with _locked(folder):
        known = read(folder)
        gone = next((record for record in known if record.name == name), None)
        if gone is None:
            names = ", ".join(record.name for record in known)
            raise UsageError(f"There is no key '{name}'.", hint=f"There are: {names}." if names else "There are none.")
        _write(folder, tuple(record for record in known if record is not gone))
    security_log.note_now(folder, Kind.KEY_REVOKED, key=gone.name, role=gone.role)
    return gone


def _write(folder: Path, records: tuple[KeyRecord, ...]) -> None:
    whole_file.write(folder / KEYS_FILE, json.dumps({"keys": [_encoded(r) for r in records]}, indent=1).encode())


def _encoded(record: KeyRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in KeyRecord.__slots__}


def _decoded(value: Any) -> tuple[KeyRecord, ...]:
    """Raises ValueError, TypeError, KeyError for what `_encoded` does not write."""
    records = tuple(KeyRecord(**cast("dict[str, Any]", entry)) for entry in value["keys"])
    for record in records:
        if not (_NAME.fullmatch(record.name) and record.role in get_args(KeyRole)):
            raise ValueError("a key without a name or a role")
        if not (_HEX.fullmatch(record.digest) and _HEX.fullmatch(record.signing)):
            raise ValueError("a key without its digest")
        if not all(math.isfinite(moment) for moment in (record.created_s, record.ends_s or 0)):
            raise ValueError("a key with times that are none")
    return records


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Two verbs at once would lose one's change. Raises UsageError after 5 s, StateFolderError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (folder / LOCK_FILE).open("ab") as file:
            until = time.monotonic() + _LOCK_S
            while not try_lock(file):
                if time.monotonic() > until:
                    raise UsageError("Another command is changing the keys.", hint="Try again.")
                time.sleep(_LOCK_POLL_S)
            yield
    except OSError as error:
        raise whole_file.StateFolderError(f"{folder} cannot be written: {error.strerror}.") from error
