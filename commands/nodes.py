"""`vramancer nodes`: every node in full, with the reason for its place in the plan; and the removal of one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from commands import options
from commands.local_node import client_for
from commands.node_details import NodeDetails
from commands.terminal import notes, plain, show, write_json

EXAMPLES = """[bold]Examples[/]

  vramancer nodes
  vramancer nodes --json | jq '.[].name'
  vramancer nodes remove old-laptop     it is cut off, and needs a new code

The node asked is the one that runs here, or the one at --url (VRM_URL)."""

app = typer.Typer(
    name="nodes",
    help="List the nodes in full, and why each holds what it holds.",
    epilog=EXAMPLES,
    rich_markup_mode="rich",
    invoke_without_command=True,
)


@app.callback()
@options.spread
def nodes(invocation: typer.Context, *, as_json: options.Json = False, flags: options.ApiFlags) -> None:
    """List the nodes in full, and why each holds what it holds."""
    if invocation.invoked_subcommand is not None:
        return
    status = client_for(flags).status(fresh=True)
    if as_json:
        write_json([asdict(node) for node in status.nodes])
    else:
        show(NodeDetails(status))


@app.command(epilog=EXAMPLES)
@options.spread
def remove(
    node: Annotated[str, typer.Argument(metavar="NAME|ID", help="As 'vramancer nodes' shows it.", show_default=False)],
    *,
    as_json: options.Json = False,
    flags: options.ApiFlags,
) -> None:
    """Remove a node from the cluster, on its master.

    Its links are cut within a second, whatever runs there.
    It comes back only with a new code or token, as another node.
    """
    removed = client_for(flags).remove_node(node)
    if as_json:
        write_json({"id": removed, "removed": True})
    else:
        notes().print(f"Removed {plain(node)} ({removed[:8]}).", markup=False, soft_wrap=True)
