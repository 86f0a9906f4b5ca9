"""What a person reads when a node is up: where it answers, how others join, what it waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from commands.terminal import plain
from vramancer_cli.settings import NODE_PORT

if TYPE_CHECKING:
    from vramancer_cli.node import NodeReady


def ready_card(ready: NodeReady) -> Text:
    """A few lines: on a head the first has the URL to open, on a worker the cluster that this machine is part of."""
    card = _head_title(ready) if ready.role == "head" else _worker_title(ready)
    for name, words in (*_rows(ready), ("end", "Ctrl-C")):
        card.append(f"  {name:<12}", style="dim").append(words + "\n")
    return card


def _head_title(ready: NodeReady) -> Text:
    return Text.assemble(("VRAMancer", "bold"), " answers at ", (ready.api_url, "bold cyan"), "\n")


def _worker_title(ready: NodeReady) -> Text:
    return Text.assemble("This machine is part of ", (plain(ready.cluster), "bold"), ".\n")


def _rows(ready: NodeReady) -> list[tuple[str, str]]:
    if ready.role == "worker":
        waiting = [("waiting for", plain(ready.waiting_for))] if ready.waiting_for else []
        return [*waiting, ("node port", str(ready.node_port)), ("look", f"vramancer status, or {ready.api_url}")]
    joining = _joining(ready, ready.code) if ready.code else []
    cluster = ("cluster", f"{plain(ready.cluster)} (node port {ready.node_port})")
    return [cluster, *joining, ("look", "vramancer status"), ("ask", "vramancer chat")]


def _joining(ready: NodeReady, code: str) -> list[tuple[str, str]]:
    """One command to copy to another machine: by discovery, and by address where that does not reach."""
    where = [address.host if address.port == NODE_PORT else str(address) for address in ready.addresses[:1]]
    return [
        ("join", f"vramancer join --auto-discover --code {code}"),
        *(("", f"vramancer join {address} --code {code}") for address in where),
        ("", "one machine per code; another code: vramancer invite"),
    ]
