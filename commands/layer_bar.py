"""The layer bar: who holds which layers, as one line of cells, its boundaries and its legend.

Rich Text only; every cell belongs to exactly one node. Never imports torch or transport.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.columns import Columns
from rich.text import Text

from commands.glyphs import Glyphs
from commands.phrases import layers as layers_phrase
from commands.phrases import plural


@dataclass(frozen=True, slots=True)
class Segment:
    """A node's or device's part: `layers` is [start, end), drawn with `fill` in `style`; the unloaded rest is faint."""

    holder: str
    name: str
    layers: tuple[int, int]
    loaded_fraction: float
    fill: str
    style: str


def cell_of(layer: int, layer_count: int, cells: int) -> int:
    """Where layer `layer` begins, in cells from the left: proportional, rounded once, so that segments meet exactly."""
    return round(layer * cells / layer_count)


def bar(segments: Sequence[Segment], layer_count: int, cells: int, empty: str) -> Text:
    """`cells` characters. Layers that nobody holds show as `empty`."""
    line, drawn = Text(no_wrap=True), 0
    for segment in segments:
        start, end = (cell_of(layer, layer_count, cells) for layer in segment.layers)
        line.append(empty * (start - drawn), style="dim")
        loaded = round((end - start) * min(1.0, segment.loaded_fraction))
        line.append(segment.fill * loaded, style=segment.style)
        line.append(empty * (end - start - loaded), style=segment.style)
        drawn = end
    return line.append(empty * (cells - drawn), style="dim")


def boundaries(segments: Sequence[Segment], layer_count: int, cells: int) -> Text:
    """The number of each segment's first layer under its first cell, and the layer count at the right end."""
    last = str(layer_count)
    marks = [" "] * cells
    free = 0
    for segment in segments:
        at, label = cell_of(segment.layers[0], layer_count, cells), str(segment.layers[0])
        if at >= free and at + len(label) < cells - len(last):
            marks[at : at + len(label)] = label
            free = at + len(label) + 1
    marks[cells - len(last) :] = last
    return Text("".join(marks), style="dim", no_wrap=True)


def legend(segments: Sequence[Segment], glyphs: Glyphs) -> Columns:
    """One entry per segment, in as many rows as the width needs."""
    return Columns([_entry(segment, glyphs) for segment in segments], padding=(0, 3))


def _entry(segment: Segment, glyphs: Glyphs) -> Text:
    start, end = segment.layers
    loaded = "" if segment.loaded_fraction >= 1 else f", {segment.loaded_fraction:.0%} loaded"
    held = f" {layers_phrase(segment.layers, glyphs.dash)} ({plural(end - start, 'layer')}{loaded})"
    return Text.assemble((glyphs.sign(segment.fill), segment.style), " ", (segment.name, "bold"), held)
