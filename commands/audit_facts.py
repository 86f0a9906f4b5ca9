"""What `audit` tells, as values: read from a state folder alone, whether or not a node runs out of it.

A file that is broken hides nothing but itself: it is named, and the rest is told. No secret is ever read into a value
here. Never imports torch, aiohttp, cryptography or msgspec.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from commands.keys import told as told_key
from vramancer_cli.errors import VramancerError
from vramancer_cli.runtime import run_file, trust_records
from vramancer_cli.runtime.run_file import RunRecord
from vramancer_cli.runtime.trust_records import Admission, Member, OwnRemoval, Removal, TokenRecord
from vramancer_cli.serving import cluster_ca, keys
from vramancer_cli.serving.keys import KeyRecord
from vramancer_cli.telemetry import security, security_log
from vramancer_cli.telemetry.security import Event, Kind

AUTHORITY_FILE: Final = "authority.pem"
MOST_EVENTS: Final = 100_000
"""More than both files of the log can hold."""
_START_SLACK_S: Final = 2.0
_MOST_FILES: Final = 1000
_OTHERS: Final = 0o077

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Privacy:
    """Who may look into the folder. `mode` None where the system has none, or there is no folder.

    `open_files`: those that other users could read, were the folder open.
    """

    mode: int | None
    open_files: tuple[str, ...] = ()

    @property
    def private(self) -> bool | None:
        return None if self.mode is None else not self.mode & _OTHERS


@dataclass(frozen=True, slots=True)
class Exposure:
    """What a node listens on: of the one that runs now, else of the last that ran. None: not known, or not so."""

    running: RunRecord | None
    api: Event | None = None
    node_port: Event | None = None
    announced: Event | None = None


@dataclass(frozen=True, slots=True)
class Audit:
    """`now` in Unix seconds. `problems`: sentences about what could not be read."""

    now: float
    folder: Path
    privacy: Privacy
    is_head: bool
    member: Member | None
    ca_sha256: str | None
    own_removal: OwnRemoval | None
    head_places: tuple[str, ...]
    admissions: tuple[Admission, ...]
    removals: tuple[Removal, ...]
    tokens: tuple[TokenRecord, ...]
    keys: tuple[KeyRecord, ...]
    exposure: Exposure
    events: tuple[Event, ...]
    problems: tuple[str, ...]

    @property
    def open_tokens(self) -> tuple[TokenRecord, ...]:
        return tuple(token for token in self.tokens if token.open(self.now))

    def removed_s(self, node: str) -> float | None:
        return next((removal.at_s for removal in self.removals if removal.node == node), None)


def read(folder: Path, now: float, most_events: int) -> Audit:
    """Raises nothing but OSError of a folder that cannot be listed."""
    problems: list[str] = []

    def tried(reader: Callable[[Path], _T], otherwise: _T) -> _T:
        try:
            return reader(folder)
        except VramancerError as error:
            problems.append(str(error))
            return otherwise

    ca_pem = tried(cluster_ca.read_pem, None)
    events = tried(lambda path: security_log.read(path, MOST_EVENTS), ())
    return Audit(
        now=now,
        folder=folder,
        privacy=_privacy(folder),
        is_head=(folder / AUTHORITY_FILE).exists(),
        member=tried(trust_records.read_member, None),
        ca_sha256=cluster_ca.fingerprint(ca_pem) if ca_pem else None,
        own_removal=tried(trust_records.read_own_removal, None),
        head_places=tried(trust_records.read_head_places, ()),
        admissions=tried(trust_records.read_admissions, ()),
        removals=tried(trust_records.read_removals, ()),
        tokens=tried(trust_records.read_tokens, ()),
        keys=tried(keys.read, ()),
        exposure=_exposure(tried(run_file.running, None), events),
        events=events[-most_events:] if most_events else (),
        problems=tuple(dict.fromkeys(problems)),
    )


def _exposure(running: RunRecord | None, events: Sequence[Event]) -> Exposure:
    since_s = running.create_time_s - _START_SLACK_S if running else 0.0

    def last(kind: Kind) -> Event | None:
        return next((event for event in reversed(events) if event.kind == kind and event.at_s >= since_s), None)

    api = last(Kind.API_OPENED)
    announced = last(Kind.ANNOUNCED)
    if announced is not None and api is not None and announced.at_s < api.at_s:
        announced = None  # of a start before that one
    return Exposure(running, api, last(Kind.NODE_PORT_OPENED), announced)


def _privacy(folder: Path) -> Privacy:
    if os.name != "posix" or not folder.is_dir():
        return Privacy(None)
    mode = stat.S_IMODE(folder.stat().st_mode)
    if not mode & _OTHERS or not os.access(folder, os.R_OK):
        return Privacy(mode)
    with os.scandir(folder) as entries:
        found = [entry for _, entry in zip(range(_MOST_FILES), entries, strict=False)]
    return Privacy(mode, tuple(sorted(entry.name for entry in found if _is_open(entry))))


def _is_open(entry: os.DirEntry[str]) -> bool:
    return bool(entry.stat(follow_symlinks=False).st_mode & _OTHERS)


# --- as JSON --------------------------------------------------------------------------------------------------------


def to_json(audit: Audit) -> dict[str, Any]:
    """All of it, in plain values; times are Unix seconds."""
    return {
        "node": _node_json(audit),
        "admitted": [_admission_json(audit, admission) for admission in audit.admissions],
        "removed": [{"node": removal.node, "at_s": removal.at_s} for removal in audit.removals],
        "tokens": [_token_json(token) for token in audit.open_tokens],
        "keys": [told_key(key, audit.now) for key in audit.keys],
        "exposed": _exposure_json(audit.exposure),
        "events": [security.to_json(event) for event in audit.events],
        "problems": list(audit.problems),
    }


def _node_json(audit: Audit) -> dict[str, Any]:
    member, privacy, removal = audit.member, audit.privacy, audit.own_removal
    return {
        "role": "head" if audit.is_head else "worker" if member else None,
        "name": member.name if member else None,
        "id": member.node if member else None,
        "cluster": member.cluster if member else None,
        "head": member.head if member else None,
        "head_addresses": list(audit.head_places),
        "ca_sha256": audit.ca_sha256,
        "removed_from": {"cluster": removal.cluster, "at_s": removal.at_s} if removal else None,
        "folder": str(audit.folder),
        "folder_mode": None if privacy.mode is None else f"{privacy.mode:04o}",
        "folder_private": privacy.private,
        "open_files": list(privacy.open_files),
    }


def _admission_json(audit: Audit, admission: Admission) -> dict[str, Any]:
    return {
        "node": admission.node,
        "name": admission.name,
        "invitation": admission.how,
        "at_s": admission.at_s,
        "removed_s": audit.removed_s(admission.node),
    }


def _token_json(token: TokenRecord) -> dict[str, Any]:
    return {
        "id": token.id,
        "made_s": token.made_s,
        "ends_s": token.ends_s,
        "reusable": token.reusable,
        "use_count": token.use_count,
        "last_uses": [{"node": use.node, "at_s": use.at_s} for use in token.last_uses],
    }


def _exposure_json(exposure: Exposure) -> dict[str, Any]:
    running = exposure.running
    return {
        "running": running is not None,
        "since_s": running.create_time_s if running else None,
        "api_url": running.api_url if running else None,
        "api": security.to_json(exposure.api) if exposure.api else None,
        "node_port": security.to_json(exposure.node_port) if exposure.node_port else None,
        "mdns": exposure.announced is not None,
    }
