"""The signs and colours of the boards: what an output can show, and which colour a node or a state has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions
from rich.text import Text

_NODE_COLOURS: Final = (
    "deep_sky_blue1",
    "orange1",
    "medium_purple1",
    "spring_green2",
    "hot_pink",
    "gold1",
    "turquoise2",
    "light_coral",
)
_STATE_STYLES: Final = {
    "ready": "green",
    "joined": "cyan",
    "loading": "yellow",
    "waiting": "yellow",
    "spare": "dim",
    "quarantined": "bold red",
    "lost": "bold red",
    "asleep": "dim",
    "failed": "bold red",
}


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What an output can show. `fills`: one per node in turn; a single one where colours tell nodes apart."""

    empty: str
    used: str
    unused: str
    dot: str
    dash: str
    bullet: str
    rule: str
    square: str
    fills: tuple[str, ...]

    def fill(self, place: int) -> str:
        return self.fills[place % len(self.fills)]

    def sign(self, fill: str) -> str:
        """What stands beside a name for `fill`: a smaller square that does not touch the line below it."""
        return self.square if len(self.fills) == 1 else fill


def glyphs_for(console: Console, options: ConsoleOptions) -> Glyphs:
    """ASCII where the encoding has no blocks, one fill where there are colours."""
    coloured = console.color_system is not None and not console.no_color
    if options.ascii_only:
        return Glyphs(".", "#", ".", "*", "-", "-", "-", "#", ("#",) if coloured else ("#", "=", "+"))
    return Glyphs("░", "━", "─", "●", "–", "·", "─", "■", ("█",) if coloured else ("█", "▒", "▓"))


def node_colour(place: int) -> str:
    """The colour of the node at `place` in the pipeline."""
    return _NODE_COLOURS[place % len(_NODE_COLOURS)]


def state_text(state: str, glyphs: Glyphs, words: str = "") -> Text:
    """A dot and `words` (else the state's name), in the state's colour."""
    return Text(f"{glyphs.dot} {words or state}", style=_STATE_STYLES.get(state, ""))
