"""`vramancer drain`: have other nodes take a node's layers over, so that it can be stopped without a pause."""

from __future__ import annotations

from typing import Annotated

import typer

from commands import options
from commands.local_node import client_for
from commands.terminal import notes, plain, waiting, write_json

EXAMPLES = """[bold]Examples[/]

  vramancer drain old-laptop
  vramancer drain 1a2b3c4d --json

Ctrl-C on the machine itself does the same, and then ends it. It is used again once it is started again."""


@options.spread
def drain(
    node: Annotated[str, typer.Argument(metavar="NAME|ID", help="As 'vramancer nodes' shows it.", show_default=False)],
    *,
    as_json: options.Json = False,
    flags: options.ApiFlags,
) -> None:
    """Take a node's layers off it, on its master.

    Others load them, and requests go on; then it holds nothing and may be stopped.
    Refused where the others cannot hold the model.
    """
    with waiting(f"waiting for others to take over what {plain(node)} holds…"):
        drained = client_for(flags).drain_node(node)
    if as_json:
        write_json({"id": drained, "drained": True})
    else:
        notes().print(f"{plain(node)} ({drained[:8]}) holds nothing now.", markup=False, soft_wrap=True)
