"""A trace on the terminal: a table of the stages, and a line for each with what it did when. Never asks a node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from commands.terminal import plain
from vramancer_cli.telemetry.activity import Activity, StageActivity, activity
from vramancer_cli.telemetry.cluster_trace import ClusterTrace, TracedSpan

SHOWN_STEPS: Final = 12
"""So many steps of the first stage fill a line."""
_SIGNS: Final = {"prefill": ("█", "#"), "mixed": ("▓", "%"), "decode": ("▒", "="), "ends": ("▪", "+"), "": ("·", ".")}
_STYLES: Final = {
    "prefill": "orange1",
    "mixed": "gold1",
    "decode": "deep_sky_blue1",
    "ends": "medium_purple1",
    "": "dim",
}
_MARGIN: Final = 14


class TraceView:
    """What `vramancer trace` shows."""

    def __init__(self, trace: ClusterTrace) -> None:
        self._trace = trace
        self._activity = activity(trace)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield _table(self._activity)
        yield Text(_sentence(self._activity))
        yield Text()
        yield from self._lines(max(20, options.max_width - _MARGIN - 2), 1 if options.ascii_only else 0)

    def _lines(self, width: int, signs: int) -> Iterator[Text]:
        began_s, ended_s = _shown(self._trace)
        for stage in self._activity.stages:
            place = self._trace.stages[stage.stage]
            spans = list(self._trace.node(place.node).on_device(place.device))
            line = Text(f"stage {stage.stage} ".ljust(_MARGIN)[:_MARGIN])
            for what in _columns(spans, began_s, (ended_s - began_s) / width, width):
                line.append(_SIGNS[what][signs], style=_STYLES[what])
            yield line
        legend = "  ".join(f"{_SIGNS[what][signs]} {what or 'waiting'}" for what in _SIGNS)
        yield Text(f"{'the last':<{_MARGIN}}{(ended_s - began_s) * 1e3:.0f} ms    {legend}", style="dim")


def _table(told: Activity) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("stage", no_wrap=True)
    for name in ("busy", "ends", "waiting", "sending", "steps", "mean step", "rows", "tokens"):
        table.add_column(name, justify="right")
    for stage in told.stages:
        table.add_row(*_cells(stage))
    return table


def _cells(stage: StageActivity) -> tuple[str, ...]:
    shares = (f"{share:.0%}" for share in (stage.busy, stage.ends, stage.waiting, stage.sending))
    start, end = stage.layers
    where = f"{stage.stage} {plain(stage.node)} [{start}, {end})"
    means = (f"{stage.mean_step_s * 1e3:.1f} ms", f"{stage.mean_rows:.1f}", f"{stage.mean_tokens:.1f}")
    return (where, *shares, str(stage.steps), *means)


def _sentence(told: Activity) -> str:
    if not told.steps:
        return f"{told.window_s:.2f} s, in which no step came back."
    return (
        f"{told.steps} steps in {told.window_s:.2f} s, one every {told.step_s * 1e3:.1f} ms; "
        f"scheduling took {told.scheduling_s * 1e3:.2f} ms of each ({told.scheduling:.1%})."
    )


def _shown(trace: ClusterTrace) -> tuple[float, float]:
    """The time of the last SHOWN_STEPS steps of the first stage."""
    began_s, ended_s = trace.window
    for place in trace.stages[:1]:
        computed = [s for s in trace.node(place.node).on_device(place.device) if s.kind == "compute" and not s.stage]
        if len(computed) > SHOWN_STEPS:
            began_s = computed[-SHOWN_STEPS].began_s
    return began_s, max(ended_s, began_s + 1e-6)


def _columns(spans: Iterable[TracedSpan], began_s: float, column_s: float, width: int) -> list[str]:
    """What a device did most of in each column, or nothing where it was idle for more than half of it."""
    shares: list[dict[str, float]] = [{} for _ in range(width)]
    for span in spans:
        what = span.phase or "decode" if span.kind == "compute" else "ends"
        first, last = (int((at - began_s) / column_s) for at in (span.began_s, span.ended_s))
        for column in range(max(0, first), min(width, last + 1)):
            start_s = began_s + column * column_s
            overlap_s = min(span.ended_s, start_s + column_s) - max(span.began_s, start_s)
            shares[column][what] = shares[column].get(what, 0.0) + max(0.0, overlap_s)
    return [_most(share) if sum(share.values()) >= column_s / 2 else "" for share in shares]


def _most(share: dict[str, float]) -> str:
    return max(share, key=share.__getitem__)
