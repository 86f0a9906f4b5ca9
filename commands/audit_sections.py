"""The page of `audit`: this node, who was let in, open tokens, keys, what is exposed, the last events.

Rich renderables only. Never imports torch or transport.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from commands.audit_facts import Audit, Exposure
from commands.event_words import is_alarm, sentence
from commands.phrases import plural
from commands.terminal import plain
from vramancer_cli.runtime.trust_records import Removal
from vramancer_cli.telemetry.security import Event

_ALARM: Final = "bold red"
_OPEN_TO: Final = {
    "this machine": "every user and program of this machine, no key asked",
    "keys": "whoever shows an API key",
    "nodes": "nodes of the cluster",
    "nodes and pairing": "nodes of the cluster; machines with a code or a token",
}
_SPEAKS: Final = {
    "https": "HTTPS (plain HTTP from this machine)",
    "https and http": "HTTPS and plain HTTP",
    "http": "plain HTTP",
}


@dataclass(frozen=True, slots=True)
class AuditPage:
    audit: Audit

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for title, body in _sections(self.audit):
            yield Text(title, "bold")
            yield Padding(body, (0, 0, 1, 2))
        yield Text("Times are UTC.", "dim")


def _sections(audit: Audit) -> Iterator[tuple[str, RenderableType]]:
    yield "This node", _node(audit)
    if audit.is_head or audit.admissions or audit.removals:
        yield "Nodes let in", _admitted(audit)
        yield "Open join tokens", _tokens(audit)
    yield "API keys", _keys(audit)
    yield _exposed_title(audit.exposure), _exposed(audit)
    yield f"Last {plural(len(audit.events), 'event')}" if audit.events else "Events", _events(audit.events)


# --- this node ------------------------------------------------------------------------------------------------------


def _node(audit: Audit) -> Table:
    table = _facts()
    _say(table, "role", _role(audit))
    if audit.member is not None:
        _say(table, "name", f"{plain(audit.member.name)}  {plain(audit.member.node)}")
    if audit.head_places and not audit.is_head:
        _say(table, "master", ", ".join(plain(place) for place in audit.head_places))
    if audit.ca_sha256 is not None:
        _say(table, "CA SHA-256", audit.ca_sha256.replace(":", "").lower())
    _say(table, "folder", plain(str(audit.folder)))
    _say(table, "", _privacy(audit))
    for problem in audit.problems:
        _say(table, "problem", Text(plain(problem), _ALARM))
    return table


def _role(audit: Audit) -> Text:
    member, removal = audit.member, audit.own_removal
    if audit.is_head:
        return Text(f"master of the cluster '{plain(member.cluster)}'" if member else "master of a cluster")
    if member is not None:
        return Text(f"worker of the cluster '{plain(member.cluster)}'")
    if removal is not None:
        return Text(f"none: it was removed from '{plain(removal.cluster)}', as it heard {_time(removal.at_s)}", _ALARM)
    return Text("none: it belongs to no cluster")


def _privacy(audit: Audit) -> Text:
    privacy = audit.privacy
    if privacy.mode is None:
        return Text("permissions unknown" if audit.folder.is_dir() else "it does not exist", "dim")
    if privacy.private:
        return Text(f"{privacy.mode:04o}: for its owner only")
    files = f", and in it {', '.join(map(plain, privacy.open_files[:8]))}" if privacy.open_files else ""
    return Text(f"{privacy.mode:04o}: open to other users{files}", _ALARM)


# --- who may --------------------------------------------------------------------------------------------------------


def _admitted(audit: Audit) -> RenderableType:
    known = {admission.node for admission in audit.admissions}
    forgotten = [removal for removal in audit.removals if removal.node not in known]
    if not audit.admissions and not forgotten:
        return Text("none", "dim")
    table = _list("Name", "Id", "Let in", "By", "Removed")
    for admission in audit.admissions:
        removed_s = audit.removed_s(admission.node)
        end = "" if removed_s is None else _time(removed_s)
        cells = (admission.name or "not joined yet", admission.node[:8], _time(admission.at_s), admission.how, end)
        table.add_row(*_cells(cells, dim=removed_s is not None))
    for removal in forgotten:
        table.add_row(*_cells(_forgotten(removal), dim=True))
    return table


def _forgotten(removal: Removal) -> tuple[str, ...]:
    return ("", removal.node[:8], "", "", _time(removal.at_s))


def _tokens(audit: Audit) -> RenderableType:
    if not audit.open_tokens:
        return Text("none", "dim")
    table = _list("Id", "Made", "Good until", "For", "Used")
    for token in audit.open_tokens:
        how = "many machines" if token.reusable else "one machine"
        cells = (token.id, _time(token.made_s), _time(token.ends_s), how, plural(token.use_count, "time"))
        table.add_row(*_cells(cells))
    return table


def _keys(audit: Audit) -> RenderableType:
    if not audit.keys:
        return Text("none", "dim")
    table = _list("Name", "Role", "Made", "Good until", "")
    for key in audit.keys:
        until = "it is revoked" if key.ends_s is None else _time(key.ends_s)
        ended = key.ended(audit.now)
        cells = (key.name, key.role, _time(key.created_s), until, "ended" if ended else "")
        table.add_row(*_cells(cells, dim=ended))
    return table


# --- what is exposed ------------------------------------------------------------------------------------------------


def _exposed_title(exposure: Exposure) -> str:
    if exposure.running is not None:
        return f"Exposed since {_time(exposure.running.create_time_s)}"
    last = exposure.api or exposure.node_port
    return f"Exposed: nothing, no node runs. Last start, {_time(last.at_s)}:" if last else "Exposed"


def _exposed(audit: Audit) -> RenderableType:
    exposure, table = audit.exposure, _facts()
    if exposure.api is not None:
        _add_places(table, "API", exposure.api, _SPEAKS.get(exposure.api.speaks, ""))
        if exposure.api.key:
            _say(table, "", f"one key is in {plain(exposure.api.key)}, role admin")
    elif exposure.running is not None:
        _say(table, "API", exposure.running.api_url)
    if exposure.node_port is not None:
        _add_places(table, "node port", exposure.node_port, "TLS 1.3")
    elif exposure.running is not None:
        _say(table, "node port", str(exposure.running.node_port))
    if exposure.announced is not None:
        _say(table, "mDNS", "the cluster's name, its id's first digits, addresses and ports")
    return table if table.row_count else Text("nothing: no node runs", "dim")


def _add_places(table: Table, what: str, event: Event, speaks: str) -> None:
    _say(table, what, " ".join(event.listens))
    _say(table, "", f"{speaks}; {_OPEN_TO.get(event.open_to, 'to whom is not known')}")


# --- events ---------------------------------------------------------------------------------------------------------


def _events(events: Sequence[Event]) -> RenderableType:
    if not events:
        return Text("none", "dim")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for event in events:
        table.add_row(_time(event.at_s, seconds=True), Text(sentence(event), "yellow" if is_alarm(event) else ""))
    return table


# --- cells ----------------------------------------------------------------------------------------------------------


def _facts() -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _say(table: Table, what: str, words: str | Text) -> None:
    """As Text: in a string, rich would take the [::1] of an address for markup."""
    table.add_row(what, Text(words) if isinstance(words, str) else words)


def _list(*titles: str) -> Table:
    """The first column gives way."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for place, title in enumerate(titles):
        table.add_column(title, overflow="fold", no_wrap=place > 0)
    return table


def _cells(texts: Sequence[str], *, dim: bool = False) -> list[Text]:
    return [Text(plain(text), "dim" if dim else "") for text in texts]


def _time(unix_s: float, *, seconds: bool = False) -> str:
    try:
        return format(datetime.fromtimestamp(unix_s, UTC), "%Y-%m-%d %H:%M:%S" if seconds else "%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return "?"
