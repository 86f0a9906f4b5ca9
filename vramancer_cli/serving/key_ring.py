"""The keys of a running node: those of its state folder, as they are now, and the one of VRM_API_TOKEN.

The file is looked at on every use: its stamp is compared, and a changed one is read again, so that a key that was
added or revoked counts from the next request on. A file that cannot be read lets nobody in.
"""

from __future__ import annotations

import hmac
import logging
from pathlib import Path
from typing import Final

from vramancer_cli.serving import keys
from vramancer_cli.serving.keys import KeyRecord, digest_of

TOKEN_NAME: Final = "VRM_API_TOKEN"  # noqa: S105
LOG: Final = logging.getLogger(__name__)

_Stamp = tuple[int, int, int, int] | None


class KeyRing:
    """`folder` None: no keys but `token`, which is a key of role admin without an end."""

    def __init__(self, folder: Path | None, token: str | None) -> None:
        self._path = None if folder is None else folder / keys.KEYS_FILE
        self._token = (KeyRecord.of(token, TOKEN_NAME, "admin", 0.0),) if token else ()
        self._stamp: _Stamp = None
        self._read: tuple[KeyRecord, ...] = ()

    def records(self) -> tuple[KeyRecord, ...]:
        stamp = self._look()
        if stamp != self._stamp:
            self._read = self._read_again() if stamp else ()
            self._stamp = stamp
        return self._token + self._read

    def find(self, shown: str, now: float) -> KeyRecord | None:
        """The key that was shown. Every key is compared, each in constant time: how long it takes tells nothing."""
        return self._matching("digest", digest_of(shown), now)

    def ended(self, shown: str, now: float) -> KeyRecord | None:
        """The key that was shown, if it was good until its end."""
        digest = digest_of(shown)
        return next((key for key in self.records() if hmac.compare_digest(key.digest, digest) and key.ended(now)), None)

    def of_id(self, key_id: str, now: float) -> KeyRecord | None:
        return self._matching("id", key_id, now)

    def holds(self, record: KeyRecord, now: float) -> bool:
        """Whether a key that was let in is still one."""
        return record in self.records() and not record.ended(now)

    def _matching(self, name: str, wanted: str, now: float) -> KeyRecord | None:
        found = [record for record in self.records() if hmac.compare_digest(getattr(record, name), wanted)]
        return found[0] if found and not found[0].ended(now) else None

    def _look(self) -> _Stamp:
        """What changes when the file is put in place anew; None where there is none."""
        if self._path is None:
            return None
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino

    def _read_again(self) -> tuple[KeyRecord, ...]:
        try:
            return () if self._path is None else keys.read(self._path.parent)
        except keys.whole_file.StateFolderError as error:
            LOG.error("no key is accepted: %s", error)
            return ()
