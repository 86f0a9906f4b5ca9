"""What a state folder says of trust: who was let in, which join tokens there are, who was removed, who this node is.

Values and how they are read; `registrar` and `state_folder` write them. Only the standard library here: the small
verbs import this.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from vramancer_cli.runtime import whole_file

TOKENS_FILE: Final = "tokens.json"
ADMITTED_FILE: Final = "admitted.json"
REVOKED_FILE: Final = "revoked.json"
CREDENTIALS_FILE: Final = "credentials.json"
HEAD_FILE: Final = "head.json"
OWN_REMOVAL_FILE: Final = "removed.json"

_T = TypeVar("_T")
_Entry = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TokenUse:
    """`node`: its id, as everywhere here."""

    node: str
    at_s: float


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A join token as the master keeps it: SHA-256 of its secret, its life in Unix seconds, its last uses."""

    digest: str
    made_s: float
    ends_s: float
    reusable: bool
    use_count: int = 0
    last_uses: tuple[TokenUse, ...] = ()

    @property
    def id(self) -> str:
        """What people and logs call it; says nothing of the secret."""
        return self.digest[:8]

    def open(self, now: float) -> bool:
        return now < self.ends_s and (self.reusable or not self.use_count)


@dataclass(frozen=True, slots=True)
class Admission:
    """`how`: `token 1a2b3c4d` or `code in slot 4`. `name` is what the node calls itself, "" until it has joined."""

    node: str
    how: str
    at_s: float
    name: str = ""


@dataclass(frozen=True, slots=True)
class Removal:
    """By node id, that is by key: every certificate on that key is revoked, of which there may be several."""

    node: str
    at_s: float


@dataclass(frozen=True, slots=True)
class OwnRemoval:
    """That this node was removed from `cluster`; when it heard of it, in Unix seconds."""

    cluster: str
    at_s: float


@dataclass(frozen=True, slots=True)
class Member:
    """The public part of a node's credentials. `head`: the master's id, its own on a head."""

    node: str
    name: str
    cluster: str
    head: str


def read_tokens(folder: Path) -> tuple[TokenRecord, ...]:
    """Oldest first, as all here; none where there is no file. Raises StateFolderError for a broken one, which stays."""
    return _records(folder / TOKENS_FILE, _token)


def read_admissions(folder: Path) -> tuple[Admission, ...]:
    return _records(folder / ADMITTED_FILE, _admission)


def read_removals(folder: Path) -> tuple[Removal, ...]:
    return _records(folder / REVOKED_FILE, lambda e: Removal(_text(e, "node"), _number(e, "at_s")))


def read_own_removal(folder: Path) -> OwnRemoval | None:
    return _record(folder / OWN_REMOVAL_FILE, lambda e: OwnRemoval(_text(e, "cluster"), _number(e, "at_s")))


def read_member(folder: Path) -> Member | None:
    """Who this node is, without its key; not checked against its certificate."""
    return _record(folder / CREDENTIALS_FILE, _member)


def read_head_places(folder: Path) -> tuple[str, ...]:
    """Where the master was last reached, best first, as HOST:PORT. To be dialled, not trusted."""
    return _read(folder / HEAD_FILE, lambda value: tuple(_place(entry) for entry in _list(value))) or ()


# --- reading ------------------------------------------------------------------------------------------------


def _records(path: Path, make: Callable[[_Entry], _T]) -> tuple[_T, ...]:
    return _read(path, lambda value: tuple(make(_object(entry)) for entry in _list(value))) or ()


def _record(path: Path, make: Callable[[_Entry], _T]) -> _T | None:
    return _read(path, lambda value: make(_object(value)))


def _read(path: Path, make: Callable[[object], _T]) -> _T | None:
    """None where there is no file. Raises StateFolderError."""
    data = whole_file.read(path)
    try:
        return None if data is None else make(json.loads(data))
    except (ValueError, OverflowError, RecursionError) as error:
        raise whole_file.broken(path, str(error)) from error


def _token(entry: _Entry) -> TokenRecord:
    return TokenRecord(
        digest=_text(entry, "digest"),
        made_s=_number(entry, "made_s"),
        ends_s=_number(entry, "ends_s"),
        reusable=_flag(entry, "reusable"),
        use_count=_whole(entry, "use_count"),
        last_uses=tuple(_use(_object(use)) for use in _list(entry.get("last_uses", []))),
    )


def _use(entry: _Entry) -> TokenUse:
    return TokenUse(_text(entry, "node"), _number(entry, "at_s"))


def _admission(entry: _Entry) -> Admission:
    name = _text(entry, "name") if "name" in entry else ""
    return Admission(_text(entry, "node"), _text(entry, "how"), _number(entry, "at_s"), name)


def _member(entry: _Entry) -> Member:
    return Member(*(_text(entry, name) for name in ("node_id", "name", "cluster", "head")))


def _place(value: object) -> str:
    parts = _list(value)
    if len(parts) != 2 or not isinstance(parts[0], str) or not isinstance(parts[1], int):
        raise ValueError("it holds no addresses")
    return f"[{parts[0]}]:{parts[1]}" if ":" in parts[0] else f"{parts[0]}:{parts[1]}"


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a list is missing")
    return cast("list[Any]", value)


def _object(value: object) -> _Entry:
    if not isinstance(value, dict):
        raise ValueError("an object is missing")
    return cast("_Entry", value)


def _text(entry: _Entry, name: str) -> str:
    value: object = entry.get(name)
    if not isinstance(value, str):
        raise ValueError(f"its '{name}' is no text")
    return value


def _number(entry: _Entry, name: str) -> float:
    value: object = entry.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"its '{name}' is no number")
    return float(value)


def _whole(entry: _Entry, name: str) -> int:
    value: object = entry.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"its '{name}' is no whole number")
    return value


def _flag(entry: _Entry, name: str) -> bool:
    value: object = entry.get(name)
    if not isinstance(value, bool):
        raise ValueError(f"its '{name}' is neither true nor false")
    return value
