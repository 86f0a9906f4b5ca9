"""The curves of a run as JSON, Markdown and pictures. Pure but for writing them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

from bench.reports import markdown_table
from bench.table import plots
from bench.table.growth import Curve

NOTE: Final = """\
A Llama of 60 million random weights in 16 layers, int8, each node on one core with one thread (two cores in all; with
more nodes they share them), through the HTTP API. Predicted: the cost model of bench/table/costs.py, whose constants
were measured in the same run: one stream, 16 streams, a far context, a prompt, and one stream over two stages. All else
it predicts. Delay is one way; it comes from a switch of our own, bandwidth from the kernel (tc tbf), both between
network namespaces.
"""


def write(curves: Sequence[Curve], around: Mapping[str, str], folder: Path) -> str:
    """Writes growth.json, growth.md and growth-*.svg; the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    plots.draw(curves, folder)
    data = {**around, "curves": [curve.to_json() for curve in curves]}
    text = markdown(curves, around)
    (folder / "growth.json").write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (folder / "growth.md").write_text(text, "utf-8")
    return text


def markdown(curves: Sequence[Curve], around: Mapping[str, str]) -> str:
    words = ", ".join(f"{name} {value}" for name, value in around.items())
    parts = [_part(by, list(lines)) for by, lines in groupby(curves, lambda curve: curve.by)]
    return "\n".join([f"# How speed grows and falls\n\n{words}.\n\n{NOTE}", *parts])


def _part(by: str, curves: Sequence[Curve]) -> str:
    head = (by, *(f"{curve.line}, {what}" for curve in curves for what in ("measured", "predicted")))
    rows = [
        (f"{points[0].x:g}", *(f"{rate:.3g}" for point in points for rate in (point.measured, point.predicted)))
        for points in zip(*(curve.points for curve in curves), strict=True)
    ]
    knees = "".join(f"- {sentence}\n" for curve in curves for sentence in curve.sentences()) or "No knees.\n"
    return f"## By {by}\n\n![tokens/s by {by}](growth-{by}.svg)\n\n{markdown_table([head, *rows])}\n{knees}"
