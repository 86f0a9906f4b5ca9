"""A trace as a drawing: a line for each stage, a box for each span on its device. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Final

from vramancer_cli.telemetry.cluster_trace import ClusterTrace, TracedSpan

COLOURS: Final = {"prefill": "#e08a1e", "mixed": "#d9b310", "decode": "#2b83ba", "ends": "#7b5ea7", "copy": "#5aae61"}
WIDTH: Final = 1200
_LINE: Final = 44
_LEFT: Final = 110
_TOP: Final = 34
_FONT: Final = 'font-family="sans-serif" font-size="13"'


def timeline(trace: ClusterTrace, title: str, began_s: float, ended_s: float) -> str:
    """An SVG of what lies between these times."""
    height = _TOP + _LINE * len(trace.stages) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {_FONT}>',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="8" y="20">{escape(title)}</text>',
        *_stages(trace, began_s, ended_s),
        *_legend(height - 12, ended_s - began_s),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def last_steps(trace: ClusterTrace, count: int) -> tuple[float, float]:
    """From where the first stage begins the last but `count` steps to the trace's end."""
    began_s, ended_s = trace.window
    first = trace.stages[0]
    computed = [s.began_s for s in trace.node(first.node).on_device(first.device) if s.kind == "compute"]
    return (computed[-count] if len(computed) > count else began_s), ended_s


def what(span: TracedSpan) -> str:
    if span.kind == "compute":
        return span.phase or "decode"
    return "copy" if span.kind == "copy" else "ends"


def _stages(trace: ClusterTrace, began_s: float, ended_s: float) -> Iterator[str]:
    scale = (WIDTH - _LEFT - 10) / (ended_s - began_s)
    for number, place in enumerate(trace.stages):
        y = _TOP + number * _LINE
        yield f'<text x="8" y="{y + 20}">stage {number} [{place.layers[0]}, {place.layers[1]})</text>'
        yield f'<rect x="{_LEFT}" y="{y}" width="{WIDTH - _LEFT - 10}" height="{_LINE - 12}" fill="#eeeeee"/>'
        for span in trace.node(place.node).on_device(place.device):
            if span.ended_s > began_s:
                x = _LEFT + (max(span.began_s, began_s) - began_s) * scale
                width = max(0.5, (span.ended_s - max(span.began_s, began_s)) * scale)
                yield _box(x, y, width, span)


def _box(x: float, y: float, width: float, span: TracedSpan) -> str:
    words = f"{span.kind} of step {span.number}, {span.seconds * 1e3:.2f} ms, {span.tokens} tokens"
    shape = f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_LINE - 12}" fill="{COLOURS[what(span)]}"'
    number = f'<text x="{x + 2:.1f}" y="{y + 20}" fill="white">{span.number}</text>' if width > 26 else ""
    return f'{shape} stroke="white" stroke-width="0.5"><title>{words}</title></rect>{number}'


def _legend(y: int, seconds: float) -> Iterator[str]:
    for number, (name, colour) in enumerate(COLOURS.items()):
        x = _LEFT + number * 110
        yield f'<rect x="{x}" y="{y - 11}" width="12" height="12" fill="{colour}"/>'
        yield f'<text x="{x + 17}" y="{y}">{name}</text>'
    yield f'<text x="{WIDTH - 10}" y="{y}" text-anchor="end">{seconds * 1e3:.0f} ms; grey: waiting</text>'
