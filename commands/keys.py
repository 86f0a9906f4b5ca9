"""`vramancer keys`: who may use the API of the node of this state folder. Works with and without a running node.

Never imports torch, aiohttp, cryptography or msgspec.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from commands import options
from commands.terminal import notes, out, show, write_json
from vramancer_cli.errors import UsageError
from vramancer_cli.serving import cluster_ca
from vramancer_cli.serving import keys as key_file
from vramancer_cli.serving.keys import KeyRecord, KeyRole

EXAMPLES = """[bold]Examples[/]

  vramancer keys add laptop
  vramancer keys add grafana --role metrics --days 90
  vramancer keys list
  vramancer keys revoke laptop
  vramancer keys ca > ca.pem     for: curl --cacert ca.pem https://desk:5000

A running node knows of a change at once. A key is shown once and kept as its
digest. Clients send it as 'Authorization: Bearer', X-Api-Key or X-API-TOKEN."""

app = typer.Typer(
    name="keys",
    help="Say who may use the API: add, list and revoke keys.",
    epilog=EXAMPLES,
    rich_markup_mode="rich",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="What people call the key.", show_default=False)]


@app.command(epilog=EXAMPLES)
@options.spread
def add(
    name: Name,
    *,
    role: Annotated[KeyRole, options.option("--role", "admin, user or metrics.", metavar="ROLE")] = "user",
    days: Annotated[int | None, options.option("--days", "How long it is good.", metavar="N", unset="no end")] = None,
    as_json: options.Json = False,
    state_dir: options.StateDir = options.DEFAULT_STATE_FOLDER,
) -> None:
    """Make a key for the API, and show it this once.

    user asks models and sees the nodes; admin may also let machines join.
    metrics reads the metrics and nothing else.
    """
    now = time.time()
    text = key_file.add(options.state_folder(state_dir), name, role, now, days)
    ends_s = None if days is None else now + days * 86400
    if as_json:
        write_json({"name": name, "role": role, "key": text, "ends_s": ends_s})
        return
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
    until = "until it is revoked" if ends_s is None else f"until {_day(ends_s)}"
    notes().print(f"Key '{name}' of role {role}, good {until}. It is not shown again.", markup=False, soft_wrap=True)


@app.command("list", epilog=EXAMPLES)
@options.spread
def list_(*, as_json: options.Json = False, state_dir: options.StateDir = options.DEFAULT_STATE_FOLDER) -> None:
    """List the keys: names, roles and times, never the keys themselves."""
    now = time.time()
    found = key_file.read(options.state_folder(state_dir))
    if as_json:
        write_json([told(record, now) for record in found])
    elif found:
        show(_table(found, now))
    else:
        out().print("There are no keys: 'vramancer keys add NAME' makes one.", markup=False, soft_wrap=True)


@app.command(epilog=EXAMPLES)
@options.spread
def revoke(
    name: Name,
    *,
    as_json: options.Json = False,
    state_dir: options.StateDir = options.DEFAULT_STATE_FOLDER,
) -> None:
    """Take a key away. A running node refuses it at once, and cuts its answers."""
    gone = key_file.revoke(options.state_folder(state_dir), name)
    if as_json:
        write_json(told(gone, time.time()))
    else:
        out().print(f"Key '{name}' is revoked.", markup=False, soft_wrap=True)


@app.command(epilog=EXAMPLES)
@options.spread
def ca(*, as_json: options.Json = False, state_dir: options.StateDir = options.DEFAULT_STATE_FOLDER) -> None:
    """Write the certificate that clients check https:// against.

    It is no secret. Give it to single programs (curl --cacert, SSL_CERT_FILE):
    a whole system that trusts it trusts this cluster's master for every site.
    """
    folder: Path = options.state_folder(state_dir)
    pem = cluster_ca.read_pem(folder)
    if pem is None:
        raise UsageError("This machine belongs to no cluster yet.", hint="Start it with 'vramancer start --master'.")
    if as_json:
        write_json({"ca_pem": pem, "sha256": cluster_ca.fingerprint(pem)})
        return
    sys.stdout.write(pem)
    sys.stdout.flush()
    notes().print(f"SHA-256 {cluster_ca.fingerprint(pem)}", markup=False, soft_wrap=True)


def told(record: KeyRecord, now: float) -> dict[str, Any]:
    """All but what could open anything."""
    return {
        "name": record.name,
        "role": record.role,
        "id": record.id,
        "created_s": record.created_s,
        "ends_s": record.ends_s,
        "ended": record.ended(now),
    }


def _table(records: tuple[KeyRecord, ...], now: float) -> Table:
    table = Table("Name", "Role", "Made", "Good until", box=None, pad_edge=False)
    for record in records:
        end = "revoked" if record.ends_s is None else _day(record.ends_s)
        style = "dim" if record.ended(now) else ""
        cells = (record.name, record.role, _day(record.created_s), end + (" (ended)" if record.ended(now) else ""))
        table.add_row(*(Text(cell, style) for cell in cells))
    return table


def _day(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d}"
