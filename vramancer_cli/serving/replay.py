"""Every signed request once: nonces in memory, and on disk a line that a restart does not go behind.

For each key there is a `floor`: a request whose time is not after it is refused. Above the floor, every nonce that was
accepted is remembered. So nothing is accepted twice, whatever the clock does:

- What is forgotten (too old, or too many) raises the floor to its time first.
- Before a request is accepted, its time is covered by the `ceiling` that stands on disk, synced. A new process takes
  the ceiling of the old one as its floor, and all that the old one accepted lies at or under it.

The ceiling is written up to LEAD_S ahead, so that there is one write in so many seconds, not one for each request;
the price: right after a restart a signed request may be refused for that long.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from vramancer_cli.runtime import whole_file
from vramancer_cli.serving.keys import ID_DIGITS
from vramancer_cli.serving.signing import WINDOW_S, Signed

CEILINGS_FILE: Final = "signed.json"
LEAD_S: Final = 5
MOST_NONCES: Final = 50_000
MOST_KEPT: Final = 256
"""Keys that have a ceiling on disk; the lowest of more are forgotten, long after their window."""
LOG: Final = logging.getLogger(__name__)


class ReplayedError(Exception):
    """The request was seen before, or is from before what this process can know."""


@dataclass(slots=True)
class Seen:
    """One key's requests: all with a time up to `floor_s`, and those of `nonces` above it. Pure."""

    floor_s: int = 0
    nonces: set[tuple[int, str]] = field(default_factory=set[tuple[int, str]])
    by_age: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])

    def note(self, time_s: int, nonce: str, now: float) -> None:
        """Remembers it. Raises ReplayedError for one that is known, or not above the floor."""
        self._forget(now)
        if time_s <= self.floor_s or (time_s, nonce) in self.nonces:
            raise ReplayedError
        self.nonces.add((time_s, nonce))
        heapq.heappush(self.by_age, (time_s, nonce))

    def _forget(self, now: float) -> None:
        while self.by_age and (self.by_age[0][0] < now - WINDOW_S or len(self.by_age) >= MOST_NONCES):
            oldest = heapq.heappop(self.by_age)
            self.nonces.discard(oldest)
            self.floor_s = max(self.floor_s, oldest[0])


class ReplayGuard:
    """`folder` None: nothing is on disk, as in a test of something else; then a restart forgets."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / CEILINGS_FILE
        self._ceilings = {} if self._path is None else _read(self._path)
        self._seen = {key: Seen(floor_s) for key, floor_s in self._ceilings.items()}
        self._writing = asyncio.Lock()

    async def accept(self, signed: Signed, now: float) -> None:
        """Raises ReplayedError; StateFolderError where it cannot be kept, and then the request may not be served."""
        self._seen.setdefault(signed.key, Seen()).note(signed.time_s, signed.nonce, now)
        async with self._writing:
            if self._path is not None and signed.time_s > self._ceilings.get(signed.key, 0):
                raised = _newest({**self._ceilings, signed.key: signed.time_s + LEAD_S})
                await asyncio.to_thread(whole_file.write, self._path, json.dumps(raised).encode())
                self._ceilings = raised


def _newest(ceilings: dict[str, int]) -> dict[str, int]:
    kept = sorted(ceilings.items(), key=lambda entry: entry[1])[-MOST_KEPT:]
    return dict(kept)


def _read(path: Path) -> dict[str, int]:
    """Raises StateFolderError: without the old ceilings, nobody could say what was accepted before."""
    text = whole_file.read(path)
    try:
        found = {} if text is None else cast("dict[Any, Any]", json.loads(text))
        if not all(len(key) == ID_DIGITS and isinstance(time_s, int) for key, time_s in found.items()):
            raise ValueError("not a table of keys and seconds")
    except (ValueError, TypeError, AttributeError) as error:
        raise whole_file.broken(path, str(error)) from error
    return cast("dict[str, int]", found)
