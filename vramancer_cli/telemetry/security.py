"""A security event, as a value that cannot hold a secret: a kind, and fields each of which has its own narrow form.

There is no free text: an address is an IP, a node its id, an invitation its slot or the first digits of a hash. What
does not have its field's form is left out. Standard library only; never imports an upper room.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from ipaddress import IPv6Address, ip_address
from typing import Any, Final, Literal, TypedDict, cast, get_args

Why = Literal["host", "origin", "https", "no role", "role", "replay", "clock", "guesses"]
"""Why the API refused: a name in Host, a page's Origin, plain HTTP from afar, a route of nobody, a key of another role,
a signed request seen before or of another time, too many wrong keys."""
Action = Literal["invite", "token", "remove", "drain"]
KeyRole = Literal["admin", "user", "metrics"]
OpenTo = Literal["this machine", "keys", "nodes", "nodes and pairing"]
Speaks = Literal["https", "https and http", "http"]
"""To other machines: `https` alone still takes HTTP from this machine."""

NAME_LETTERS: Final = 40
MOST_LISTENS: Final = 16
WITHHELD: Final = "(withheld)"
MOST: Final = 10**9
_MOST_S: Final = 1e11


class Kind(StrEnum):
    ADMITTED = "node_admitted"
    JOINED = "node_joined"
    RENEWED = "certificate_renewed"
    NOT_RENEWED = "renewal_refused"
    REMOVED = "node_removed"
    TURNED_AWAY = "removed_node_turned_away"
    COPY_REFUSED = "copied_folder_refused"
    QUARANTINED = "node_quarantined"
    WRONG_CODE = "wrong_code"
    CODE_NOT_OPEN = "code_not_open"
    WRONG_TOKEN = "wrong_token"  # noqa: S105
    TOKEN_MADE = "token_made"  # noqa: S105
    ADMIN_ASKED = "admin_asked"
    KEY_ADDED = "key_added"
    KEY_REVOKED = "key_revoked"
    KEY_ENDED = "ended_key_shown"
    WRONG_KEY = "wrong_key"
    REFUSED = "request_refused"
    API_OPENED = "api_opened"
    NODE_PORT_OPENED = "node_port_opened"
    ANNOUNCED = "announced_by_mdns"
    EVENTS_LOST = "events_lost"


STRANGERS: Final = frozenset({
    Kind.WRONG_CODE, Kind.CODE_NOT_OPEN, Kind.WRONG_TOKEN, Kind.NOT_RENEWED,
    Kind.WRONG_KEY, Kind.KEY_ENDED, Kind.REFUSED,
})  # fmt: skip
"""What anybody who reaches a port can bring about as often as they like."""
COUNTED: Final = STRANGERS | {
    Kind.JOINED, Kind.RENEWED, Kind.TURNED_AWAY, Kind.COPY_REFUSED, Kind.QUARANTINED, Kind.ADMIN_ASKED,
}  # fmt: skip
"""Written once a minute, with how often it was; the rest each time."""


class Fields(TypedDict, total=False):
    """Of an event, beside its kind and time. `key`: an API key's name; `tries`: wrong ones for a code so far;
    `listens`: IP:PORT."""

    node: str
    name: str
    address: str
    invitation: str
    key: str
    role: KeyRole
    why: Why
    action: Action
    tries: int
    count: int
    listens: tuple[str, ...]
    speaks: Speaks
    open_to: OpenTo


@dataclass(frozen=True, slots=True)
class Event:
    """`at_s`: Unix seconds; `count`: how often it happened in the minute since. Made by `make` and `decode` only."""

    kind: Kind
    at_s: float
    node: str = ""
    name: str = ""
    address: str = ""
    invitation: str = ""
    key: str = ""
    role: str = ""
    why: str = ""
    action: str = ""
    tries: int = 0
    count: int = 1
    listens: tuple[str, ...] = ()
    speaks: str = ""
    open_to: str = ""


def make(kind: Kind, at_s: float, given: Fields) -> Event:
    """An event with those fields that have their form; never raises."""
    return _event(kind, at_s, cast("dict[str, object]", given))


def to_json(event: Event) -> dict[str, Any]:
    """Plain values, without those that say nothing."""
    kept = {"at_s": round(event.at_s, 3), "kind": str(event.kind)}
    said = {field.name: getattr(event, field.name) for field in fields(Event)[2:]}
    return kept | {name: value for name, value in said.items() if value and (name, value) != ("count", 1)}


def encode(event: Event) -> bytes:
    return json.dumps(to_json(event), separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Event | None:
    """None for a line that holds no event, as a crash leaves it, or one of a later version."""
    try:
        found: object = json.loads(line)
        given = cast("dict[str, object]", found) if isinstance(found, dict) else {}
        kind, at_s = Kind(str(given.get("kind"))), given.get("at_s")
    except (ValueError, RecursionError):
        return None
    if isinstance(at_s, bool) or not isinstance(at_s, int | float) or not 0 <= at_s <= _MOST_S:
        return None
    return _event(kind, float(at_s), given)


def _event(kind: Kind, at_s: float, given: dict[str, object]) -> Event:
    formed = {name: form(given[name]) for name, form in _FORMS.items() if name in given}
    said = {name: value for name, value in formed.items() if value}
    return Event(kind, at_s if math.isfinite(at_s) else 0.0, **cast("dict[str, Any]", said))


# --- the form of each field: the value as it is kept, or one that says nothing -----------------------------------


def _matching(pattern: str) -> Callable[[object], str]:
    compiled = re.compile(pattern, re.ASCII)
    return lambda value: value if isinstance(value, str) and compiled.fullmatch(value) else ""


def _one_of(choices: object) -> Callable[[object], str]:
    known = frozenset(get_args(choices))
    return lambda value: value if isinstance(value, str) and value in known else ""


_SECRET_SHAPE: Final = re.compile(r"vrm1|vrm_k\d|-----|\d(?:[^A-Za-z0-9]+[a-z]{3,8}){3}", re.IGNORECASE)
"""A join token, an API key, a PEM block, a pairing code: somebody may have taken one for a name."""


def _name(value: object) -> str:
    """Printable and short; what looks like a secret is withheld."""
    if not isinstance(value, str):
        return ""
    text = "".join(letter for letter in value[: 4 * NAME_LETTERS] if letter.isprintable()).strip()
    return WITHHELD if _SECRET_SHAPE.search(text) else text[:NAME_LETTERS]


def _key_name(value: object) -> str:
    return WITHHELD if value == WITHHELD else _name(_matching(r"[A-Za-z0-9._-]{1,40}")(value))


def _address(value: object) -> str:
    """An IP; one that IPv6 wraps is unwrapped."""
    try:
        ip = ip_address(value.partition("%")[0]) if isinstance(value, str) else None
    except ValueError:
        return ""
    mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
    return str(mapped or ip) if ip else ""


def _listens(value: object) -> tuple[str, ...]:
    given = cast("tuple[object, ...]", tuple(value)) if isinstance(value, tuple | list) else ()
    return tuple(place for place in map(_place, given[:MOST_LISTENS]) if place)


def _place(value: object) -> str:
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    ip = _address(host.removeprefix("[").removesuffix("]"))
    if not ip or not re.fullmatch("[0-9]{1,5}", port):
        return ""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def _whole(value: object) -> int:
    return min(max(value, 0), MOST) if isinstance(value, int) else 0


_FORMS: Final[dict[str, Callable[[object], object]]] = {
    "node": _matching("[0-9a-f]{32}"),
    "name": _name,
    "address": _address,
    "invitation": _matching("code in slot [0-9]{1,2}|token [0-9a-f]{8}"),
    "key": _key_name,
    "role": _one_of(KeyRole),
    "why": _one_of(Why),
    "action": _one_of(Action),
    "tries": _whole,
    "count": _whole,
    "listens": _listens,
    "speaks": _one_of(Speaks),
    "open_to": _one_of(OpenTo),
}
