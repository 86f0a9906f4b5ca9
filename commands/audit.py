"""`vramancer audit`: who was let in and how, who may use the API, what is exposed where, and what has happened.

Works with and without a running node: it only reads the state folder. Never imports torch, aiohttp, cryptography or
msgspec.
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from commands import audit_facts, options
from commands.audit_sections import AuditPage
from commands.terminal import show, write_json

EXAMPLES = """[bold]Examples[/]

  vramancer audit
  vramancer audit --events 200
  vramancer audit --json | jq '.events[] | select(.kind == "wrong_code")'

It reads this machine's state folder, and asks nobody: on the master it tells
of the whole cluster, on a worker of that machine. No secret is in it.
Exits with 1 when a file could not be read; the rest is shown."""


@options.spread
def audit(
    *,
    events: Annotated[int, options.option("--events", "How many of the last.", metavar="N", min=0, max=100_000)] = 20,
    as_json: options.Json = False,
    state_dir: options.StateDir = options.DEFAULT_STATE_FOLDER,
) -> None:
    """Show who joined how, which keys exist, and what is exposed."""
    found = audit_facts.read(options.state_folder(state_dir), time.time(), events)
    if as_json:
        write_json(audit_facts.to_json(found))
    else:
        show(AuditPage(found))
    if found.problems:
        raise typer.Exit(1)
