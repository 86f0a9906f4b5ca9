"""Curves as SVG pictures, measured beside predicted. The only place that knows matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

import matplotlib as mpl

from bench.table.growth import Curve

mpl.use("svg")
mpl.rcParams |= {"svg.hashsalt": "vramancer", "svg.fonttype": "none"}  # the same figures give the same file

from matplotlib import pyplot as plt  # noqa: E402  after `use`

LABELS: Final = {
    "context": "tokens of context",
    "streams": "streams",
    "stages": "stages, each in a process",
    "delay": "delay of the way, ms",
    "bandwidth": "bandwidth, Mbit/s (last: no limit)",
}
LINEAR: Final = ("stages", "delay")


def draw(curves: Iterable[Curve], folder: Path) -> list[Path]:
    """growth-NAME.svg for each of the things that speed changes with."""
    ordered = sorted(curves, key=lambda curve: curve.by)
    return [_picture(by, list(lines), folder) for by, lines in groupby(ordered, lambda curve: curve.by)]


def _picture(by: str, curves: Sequence[Curve], folder: Path) -> Path:
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for number, curve in enumerate(curves):
        colour = f"C{number}"
        xs = [point.x for point in curve.points]
        measured, predicted = ([point.measured for point in curve.points], [point.predicted for point in curve.points])
        axes.plot(xs, measured, "o-", color=colour, label=f"{curve.line}, measured")
        axes.plot(xs, predicted, "--", color=colour, alpha=0.6, label=f"{curve.line}, predicted")
    if by not in LINEAR:
        axes.set_xscale("log", base=2 if by != "bandwidth" else 10)
    axes.set(xlabel=LABELS[by], ylabel="tokens/s", ylim=(0, None), title=f"Speed by {by}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path = folder / f"growth-{by}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path
