"""Figures with their goals, as values and as a Markdown table. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Measured:
    """The same thing measured again and again, in `unit`, at least once."""

    unit: str
    values: tuple[float, ...]

    @property
    def middle(self) -> float:
        return median(self.values)

    def words(self) -> str:
        """ "0.31 s (0.30 to 0.35, 9 times)", or one figure alone."""
        if len(self.values) == 1:
            return f"{_figure(self.middle)} {self.unit}"
        least, most = _figure(min(self.values)), _figure(max(self.values))
        return f"{_figure(self.middle)} {self.unit} ({least} to {most}, {len(self.values)} times)"

    def to_json(self) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "median": self.middle,
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
        }


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a comparison. `other` and `ratio` None: there is nothing to compare it with."""

    name: str
    measured: Measured
    other: Measured | None
    goal: str
    reached: bool
    ratio: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "measured": self.measured.to_json(),
            "other": self.other.to_json() if self.other else None,
            "ratio": self.ratio,
            "goal": self.goal,
            "reached": self.reached,
        }


def table(rows: Sequence[Row], compared: tuple[str, str]) -> str:
    """Markdown, ending with a newline. `compared`: what was measured, and what with."""
    return markdown_table([("", *compared, "ratio", "goal", ""), *map(_cells, rows)])


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the head."""
    head, *rows = lines
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ("---",) * len(head), *rows))


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        row.measured.words(),
        row.other.words() if row.other else "",
        f"{row.ratio:.2f} x" if row.ratio is not None else "",
        row.goal,
        "reached" if row.reached else "**missed**",
    )


def _figure(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
