"""What a person reads when a node is up: where it answers, how others join, what it waits for."""

from __future__ import annotations

import platform
import socket
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
    joining = _joining(ready.code, ready.node_port) if ready.code else []
    cluster = ("cluster", f"{plain(ready.cluster)} (node port {ready.node_port})")
    return [cluster, *joining, ("look", "vramancer status"), ("ask", "vramancer chat")]


def _joining(code: str, node_port: int) -> list[tuple[str, str]]:
    """One command to copy to another machine: by discovery, and by address where that does not reach."""
    where = own_address() if node_port == NODE_PORT else f"{own_address()}:{node_port}"
    return [
        ("join", f"vramancer join --auto-discover --code {code}"),
        ("", f"vramancer join {where} --code {code}"),
        ("", "one machine per code; another code: vramancer invite"),
    ]


def own_address() -> str:
    """The address from which this machine would reach others; its name where it is on no network."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # RFC 5737: nobody's address; connecting a datagram socket sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return platform.node() or "HOST"
