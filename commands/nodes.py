"""`vramancer nodes`: each machine of the cluster in full."""

from __future__ import annotations

from dataclasses import asdict

from commands import options
from commands.local_node import client_for
from commands.node_details import NodeDetails
from commands.terminal import show, write_json

EXAMPLES = """[bold]Examples[/]

  vramancer nodes
  vramancer nodes --json | jq '.[].name'

The node asked is the one that runs here, or the one at --url (VRM_URL)."""


@options.spread
def nodes(*, as_json: options.Json = False, flags: options.ApiFlags) -> None:
    """List the nodes in full, and why each holds what it holds."""
    status = client_for(flags).status(fresh=True)
    if as_json:
        write_json([asdict(node) for node in status.nodes])
    else:
        show(NodeDetails(status))
