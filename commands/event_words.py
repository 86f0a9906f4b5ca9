"""Security events as sentences for people. Pure; never imports rich, torch or transport."""

from __future__ import annotations

from typing import Final

from commands.terminal import plain
from vramancer_cli.telemetry.security import Event, Kind

_SENTENCES: Final[dict[Kind, str]] = {
    Kind.ADMITTED: "{who} was let in by {invitation}{place}",
    Kind.JOINED: "{who} joined{place}",
    Kind.RENEWED: "{who} got a new certificate{place}",
    Kind.NOT_RENEWED: "{who} got no new certificate{place}: it showed none of this cluster",
    Kind.REMOVED: "{who} was removed",
    Kind.TURNED_AWAY: "{who} was turned away{place}: it was removed",
    Kind.COPY_REFUSED: "{who} was refused{place}: a copied state folder",
    Kind.QUARANTINED: "{who} was quarantined{place}: it sent what the protocol does not allow",
    Kind.WRONG_CODE: "wrong pairing {invitation}, try {tries}{place}",
    Kind.CODE_NOT_OPEN: "a pairing code that is not open{place}",
    Kind.WRONG_TOKEN: "{invitation} is wrong, used or has ended{place}",
    Kind.TOKEN_MADE: "join {invitation} was made",
    Kind.ADMIN_ASKED: "{action} was asked for{place}{by_key}",
    Kind.KEY_ADDED: "API key {key} was added, role {role}",
    Kind.KEY_REVOKED: "API key {key} was revoked",
    Kind.KEY_ENDED: "API key {key} was shown, but has ended{place}",
    Kind.WRONG_KEY: "a wrong API key{place}",
    Kind.REFUSED: "an API request was refused{place}: {why}",
    Kind.API_OPENED: "the API opened at {listens}",
    Kind.NODE_PORT_OPENED: "the node port opened at {listens}",
    Kind.ANNOUNCED: "the cluster is announced by mDNS",
    Kind.EVENTS_LOST: "{count} events before this one were not kept",
}
_WHY: Final = {
    "host": "it named a host that this is not",
    "origin": "a page of another site",
    "https": "plain HTTP",
    "no role": "a route of nobody",
    "role": "its key is of another role",
    "replay": "it was seen before",
    "clock": "signed at another time",
    "guesses": "too many wrong keys",
}
_ACTIONS: Final = {
    "invite": "a pairing code",
    "token": "a join token",
    "remove": "the removal of a node",
    "drain": "the draining of a node",
}
_ALARMS: Final = frozenset({
    Kind.WRONG_CODE, Kind.WRONG_TOKEN, Kind.CODE_NOT_OPEN, Kind.WRONG_KEY, Kind.KEY_ENDED, Kind.REFUSED,
    Kind.TURNED_AWAY, Kind.COPY_REFUSED, Kind.QUARANTINED, Kind.NOT_RENEWED, Kind.EVENTS_LOST,
})  # fmt: skip


def is_alarm(event: Event) -> bool:
    """Somebody was refused, or something is missing."""
    return event.kind in _ALARMS


def sentence(event: Event) -> str:
    more = event.kind != Kind.EVENTS_LOST and event.count > 1
    words = _SENTENCES[event.kind].format(
        who=who(event.name, event.node),
        place=f", from {event.address}" if event.address else "",
        by_key=f", key {event.key}" if event.key else "",
        invitation=event.invitation or "an invitation",
        tries=event.tries,
        action=_ACTIONS.get(event.action, "something"),
        key=event.key or "of an unknown name",
        role=event.role or "unknown",
        why=_WHY.get(event.why, "unknown"),
        listens=" ".join(event.listens) or "an unknown address",
        count=event.count,
    )
    return f"{words} ({event.count} times within a minute)" if more else words


def who(name: str, node: str) -> str:
    """ "attic (1a2b3c4d)"; of what is not known, the other."""
    short = node[:8]
    if not short:
        return plain(name) or "a node"
    return f"{plain(name)} ({short})" if name else f"node {short}"
