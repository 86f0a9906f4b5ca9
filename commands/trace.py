"""`vramancer trace`: what every stage did in the last seconds: how busy it was, drawn, and as a file for Perfetto."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final

from commands import options
from commands.local_node import client_for
from commands.phrases import plural
from commands.terminal import notes, plain, show, write_json
from commands.timeline import TraceView
from vramancer_cli.errors import NotReadyError, UsageError
from vramancer_cli.telemetry.activity import activity
from vramancer_cli.telemetry.cluster_trace import ClusterTrace
from vramancer_cli.telemetry.trace_events import trace_events

EXAMPLES = """[bold]Examples[/]

  vramancer trace                        while an answer is made, or right after
  vramancer trace --seconds 20 --out trace.json
  vramancer trace --json | jq '.stages[].busy'

It looks back: every node remembers its last seconds. Open the file at https://ui.perfetto.dev or in chrome://tracing."""

SECONDS: Final = 5.0
MOST_SECONDS: Final = 60.0


def parse_seconds(text: str) -> float:
    """Raises UsageError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MOST_SECONDS:
        raise UsageError(f"'{text}' is no number of seconds.", hint=f"Between 0 and {MOST_SECONDS:.0f}, as 5 or 0.5.")
    return seconds


@options.spread
def trace(
    *,
    seconds: Annotated[
        float, options.option("--seconds", "How far to look back.", metavar="SECONDS", parser=parse_seconds)
    ] = SECONDS,
    out: Annotated[
        Path | None,
        options.option("--out", "Write a Chrome trace-event file.", metavar="FILE", unset="none is written"),
    ] = None,
    as_json: options.Json = False,
    flags: options.ApiFlags,
) -> None:
    """Show what each stage of the pipeline just did: busy, waiting, sending."""
    traced = client_for(flags).trace(seconds)
    if not traced.window[1]:
        raise NotReadyError(f"Nothing ran in the last {seconds:g} s.", hint="Ask something, and look again meanwhile.")
    if out is not None:
        _write(traced, out)
    if as_json:
        clocks = {node.name: node.clock_error_s for node in traced.nodes}
        write_json(activity(traced).to_json() | {"clock_error_s": clocks})
    else:
        show(TraceView(traced))
    _tell_missing(traced)


def _write(traced: ClusterTrace, out: Path) -> None:
    try:
        out.write_text(json.dumps(trace_events(traced)) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"'{out}' cannot be written: {error.strerror or error}.") from error
    count = sum(len(node.spans) for node in traced.nodes)
    words = f"{plural(count, 'span')} in {plain(str(out))}; open it at https://ui.perfetto.dev"
    notes().print(words, markup=False, soft_wrap=True)


def _tell_missing(traced: ClusterTrace) -> None:
    for node in traced.nodes:
        if node.clock_error_s is None:
            words = f"{plain(node.name)} told nothing: it is older than this version, or did not answer in time."
            notes().print(words, markup=False, soft_wrap=True)
