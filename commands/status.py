"""`vramancer status`: the board, once or live."""

from __future__ import annotations

import time
from typing import Annotated, Final

from rich.live import Live

from commands import options
from commands.board import Board
from commands.local_node import client_for
from commands.phrases import duration
from commands.terminal import out, show, write_json
from vramancer_cli.cluster.status import ClusterStatus
from vramancer_cli.errors import DaemonUnreachableError
from vramancer_cli.serving.client import ApiClient

EXAMPLES = """[bold]Examples[/]

  vramancer status
  vramancer status --watch
  vramancer status --json | jq .state
  vramancer status --url http://192.168.1.20:5000

Exits with 3 when nothing answers. --watch --json: a line of JSON a second."""

INTERVAL_S: Final = 1.0


@options.spread
def status(
    *,
    watch: Annotated[bool, options.option("--watch", "Look again every second, until Ctrl-C.")] = False,
    as_json: options.Json = False,
    flags: options.ApiFlags,
) -> None:
    """Show the cluster: nodes, memory, who holds which layers, speed."""
    client = client_for(flags)
    now = client.status(fresh=True)
    if not watch:
        _write(now, as_json=as_json)
        return
    try:
        _watch(client, now, as_json=as_json)
    except KeyboardInterrupt:
        return


def _write(now: ClusterStatus, *, as_json: bool, one_line: bool = False) -> None:
    if as_json:
        write_json(now.to_json(), one_line=one_line)
    else:
        show(Board(now))


def _watch(client: ApiClient, now: ClusterStatus, *, as_json: bool) -> None:
    console = out()
    if as_json or not console.is_terminal:
        while True:
            _write(now, as_json=as_json, one_line=True)
            time.sleep(INTERVAL_S)
            now = client.status(fresh=True)
    answered_s = time.monotonic()
    with Live(Board(now), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(INTERVAL_S)
            try:
                now, answered_s, note = client.status(fresh=True), time.monotonic(), ""
            except DaemonUnreachableError:
                note = f"No answer for {duration(time.monotonic() - answered_s)}; this is how it was before."
            live.update(Board(now, note), refresh=True)
