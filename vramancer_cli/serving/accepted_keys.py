"""The idempotency keys of lately accepted requests, on the disk: after a restart none of them runs a second time.

Digests only, no key and no text. Written before the request runs; what a crash tears off at the end of the file is one
record that never counted. Blocking; for one thread at a time. Knows no HTTP.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

FILE_NAME: Final = "accepted-keys"
KEPT_S: Final = 600.0
"""So long a key stands for its request. A client that tries again later runs it again."""
MOST: Final = 20_000
"""As many keys as are remembered; the oldest go first."""


class AcceptedKeys:
    """`folder` None: only in memory. A key is the digest of who used it, where, and of the key itself."""

    def __init__(self, folder: Path | None, now_s: float) -> None:
        self._path = folder / FILE_NAME if folder is not None else None
        self._bodies: dict[str, tuple[str, float]] = {}
        if self._path is not None and self._path.exists():
            for line in self._path.read_text(errors="replace").splitlines():
                self._read(line)
        self._forget_old(now_s)
        self._write_anew()

    def body_of(self, key: str, now_s: float) -> str | None:
        """The digest of the body that it was accepted with lately; None for a key that is free."""
        self._forget_old(now_s)
        found = self._bodies.get(key)
        return found[0] if found is not None else None

    def accept(self, key: str, body: str, now_s: float) -> None:
        """On the disk when this returns. Raises OSError."""
        self._append(f"+ {key} {body} {now_s:.0f}")
        self._bodies[key] = (body, now_s)

    def refuse(self, key: str) -> None:
        """It did not run after all: the key is free again. Raises OSError."""
        if self._bodies.pop(key, None) is not None:
            self._append(f"- {key}")

    def _read(self, line: str) -> None:
        match line.split(" "):
            case ["+", key, body, at] if len(key) == len(body) == 64 and at.isdecimal():
                self._bodies[key] = (body, float(at))
            case ["-", key]:
                self._bodies.pop(key, None)
            case _:
                pass  # torn off

    def _forget_old(self, now_s: float) -> None:
        """They stand in the order of their times; a clock that was set back keeps them longer, never shorter."""
        for key in list(self._bodies)[: max(0, len(self._bodies) - MOST)]:
            del self._bodies[key]
        while self._bodies and now_s - next(iter(self._bodies.values()))[1] > KEPT_S:
            del self._bodies[next(iter(self._bodies))]

    def _append(self, line: str) -> None:
        if self._path is None:
            return
        handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(f"{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())

    def _write_anew(self) -> None:
        if self._path is None or not self._path.exists():
            return
        lines = [f"+ {key} {body} {at:.0f}\n" for key, (body, at) in self._bodies.items()]
        aside = self._path.with_name(f"{FILE_NAME}.new")
        handle = os.open(aside, os.O_WRONLY | os.O_TRUNC | os.O_CREAT, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._path)
