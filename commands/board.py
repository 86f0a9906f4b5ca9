"""The board of `status`: a ClusterStatus as a person reads it, in any width, with or without colour or Unicode.

Rich renderables only: nothing is fetched or printed here. Never imports torch or transport.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from commands.glyphs import Glyphs, glyphs_for, node_colour, state_text
from commands.layer_bar import Segment, bar, boundaries, legend
from commands.phrases import device_words, duration, memory, plural, round_trip, speed, system_words
from commands.terminal import plain
from vramancer_cli.cluster.status import ClusterStatus, DeviceStatus, LinkStatus, NodeStatus

_COLUMNS: Final = ("  node", "system", "device", "memory", "   trip", "state")
_NAME, _DEVICE = 0, 2
_NAME_CELLS: Final = 20
_DEVICE_CELLS: Final = 6
_MEMORY_CELLS: Final = 8
_WIDE: Final = 100
"""From this width on there is room for the planner's reasons."""


@dataclass(frozen=True, slots=True)
class Board:
    """Renders `status`. `note` is one more line under the title, such as "no answer for 5 s"."""

    status: ClusterStatus
    note: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        glyphs = glyphs_for(console, options)
        width = options.max_width
        segments = _segments(self.status, glyphs)
        yield _title(self.status, glyphs, width)
        yield Rule(characters=glyphs.rule, style="dim")
        if self.note:
            yield Padding(Text(plain(self.note), style="bold red"), (0, 1))
        yield from _facts(self.status, glyphs, width)
        yield Text("")
        yield _node_table(self.status.nodes, segments, glyphs, width)
        yield from _layers(segments, self.status.layer_count, glyphs, width - 2)
        yield from _remarks(self.status, glyphs, width)


def _title(status: ClusterStatus, glyphs: Glyphs, width: int) -> Table:
    grid = Table.grid(expand=True, padding=(0, 1), pad_edge=True)
    grid.width = width
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    name = Text.assemble(("VRAMancer", "bold"), "  ", (plain(status.cluster), "bold cyan"))
    up = (f"  up {duration(status.uptime_s)}", "not bold dim")
    grid.add_row(name, Text.assemble(state_text(status.state, glyphs), up))
    return grid


def _facts(status: ClusterStatus, glyphs: Glyphs, width: int) -> RenderResult:
    between = f" {glyphs.bullet} "
    if status.reason:
        yield Padding(Text(plain(status.reason), style="yellow"), (0, 1))
    model = Text.assemble(" ", (plain(status.model) or "no model", "bold"))
    if status.layer_count:
        facts = (plain(status.numbers), f"{status.layer_count} layers", f"context {status.context_tokens} tokens")
        model.append(between + between.join(facts))
    yield _fitted(model, width)
    yield from _prefix_line(status, width)
    queue = f"{status.running} running, {status.waiting} waiting"
    rate = Text.assemble(" ", (f"{status.tokens_per_s:.1f}", "bold"), f" tokens/s{between}{queue}{between}")
    yield _fitted(rate.append(plain(status.api_url), style="cyan"), width)
    if status.tokens_per_trip is not None and status.draft_acceptance is not None:
        trips = f" {status.tokens_per_trip:.2f} tokens a trip{between}{status.draft_acceptance:.0%} of guesses right"
        yield _fitted(Text(trips), width)


def _prefix_line(status: ClusterStatus, width: int) -> RenderResult:
    """How much of all prompts did not have to be computed; nothing before there was any."""
    if status.prefix_asked_tokens:
        share = f"{status.prefix_found_tokens / status.prefix_asked_tokens:.0%}"
        told = f" ({status.prefix_found_tokens} of {status.prefix_asked_tokens} tokens)"
        yield _fitted(Text.assemble(" prefix cache ", (share, "bold"), told), width)


def _fitted(text: Text, width: int) -> Text:
    text.no_wrap = True
    text.truncate(width, overflow="ellipsis")
    return text


def _node_table(nodes: Sequence[NodeStatus], segments: Sequence[Segment], glyphs: Glyphs, width: int) -> Table:
    """Every column as wide as its words, but the device, which takes what is left."""
    signs = {segment.holder: Text(glyphs.sign(segment.fill), style=segment.style) for segment in segments}
    figures_cells = max((len(_memory_figures(node)) for node in nodes), default=0)
    rows = [row for node in nodes for row in _node_rows(node, signs, figures_cells, glyphs)]
    cells = _column_cells(rows, width)
    table = Table(box=None, padding=(0, 0, 0, 1), header_style="dim")
    for heading, column_cells in zip(_COLUMNS, cells, strict=True):
        table.add_column(heading, no_wrap=True, overflow="ellipsis", width=column_cells)
    for row in rows:
        table.add_row(*row)
    return table


def _memory_figures(node: NodeStatus | DeviceStatus) -> str:
    return memory(node.memory_used_bytes, node.memory_limit_bytes)


def _column_cells(rows: Sequence[tuple[Text, ...]], width: int) -> list[int]:
    cells = [max([len(h), *(row[index].cell_len for row in rows)]) for index, h in enumerate(_COLUMNS)]
    cells[_NAME] = min(cells[_NAME], _NAME_CELLS)
    cells[:-1] = [c + 1 for c in cells[:-1]]  # a second space between columns
    others = sum(cells) - cells[_DEVICE] + len(cells)
    cells[_DEVICE] = max(_DEVICE_CELLS, min(cells[_DEVICE], width - others))
    return cells


def _node_rows(
    node: NodeStatus, signs: Mapping[str, Text], figures_cells: int, glyphs: Glyphs
) -> Iterator[tuple[Text, ...]]:
    """The node's, and where it lends several devices one for each below it."""
    yield _node_row(node, signs.get(node.id, Text(" ")), figures_cells, glyphs)
    for device in several(node):
        yield _device_row(device, signs.get(_holder(node, device), Text(" ")), figures_cells, glyphs)


def several(node: NodeStatus) -> tuple[DeviceStatus, ...]:
    """The node's devices, where one line for all of them would not tell enough."""
    return node.devices if len(node.devices) > 1 else ()


def _holder(node: NodeStatus, device: DeviceStatus) -> str:
    return f"{node.id} {device.device}"


def _device_row(device: DeviceStatus, sign: Text, figures_cells: int, glyphs: Glyphs) -> tuple[Text, ...]:
    return (
        Text.assemble("  ", sign, " ", plain(device.device)),
        Text(""),
        Text(plain(device_words(device.device, device.device_name))),
        Text.assemble(memory_gauge(device, glyphs), " ", _memory_figures(device).rjust(figures_cells)),
        Text(""),
        Text(""),
    )


def _node_row(node: NodeStatus, sign: Text, figures_cells: int, glyphs: Glyphs) -> tuple[Text, ...]:
    faint = "dim" if node.state in ("lost", "spare") else ""
    return (
        Text.assemble(sign, " ", (plain(node.name), faint or "bold"), (" head" if node.role == "head" else "", "dim")),
        Text(plain(system_words(node.os)), style=faint),
        Text(plain(_node_devices(node)), style=faint),
        Text.assemble(memory_gauge(node, glyphs), " ", (_memory_figures(node).rjust(figures_cells), faint)),
        Text(round_trip(node.round_trip_s, glyphs.dash).rjust(7), style=faint),
        state_text(node.state, glyphs),
    )


def _node_devices(node: NodeStatus) -> str:
    if several(node):
        return plural(len(node.devices), "device")
    return device_words(node.device, node.device_name)


def node_state(node: NodeStatus, glyphs: Glyphs) -> Text:
    if node.state != "loading":
        return state_text(node.state, glyphs, "")
    if node.fetched_bytes < node.fetch_bytes:
        return state_text(node.state, glyphs, f"fetching {node.fetched_bytes / node.fetch_bytes:.0%}")
    return state_text(node.state, glyphs, f"loading {node.loaded_fraction:.0%}")


def memory_gauge(node: NodeStatus | DeviceStatus, glyphs: Glyphs) -> Text:
    """How much of its limit a node or device uses, in eight cells; one that uses anything shows at least one."""
    fraction = node.memory_used_bytes / node.memory_limit_bytes if node.memory_limit_bytes else 0.0
    filled = min(_MEMORY_CELLS, round(fraction * _MEMORY_CELLS) or (fraction > 0))
    style = "red" if fraction > 1 else "yellow" if fraction > 0.98 else "green"
    return Text.assemble((glyphs.used * filled, style), (glyphs.unused * (_MEMORY_CELLS - filled), "dim"))


def _segments(status: ClusterStatus, glyphs: Glyphs) -> list[Segment]:
    """What holds layers, nodes or their devices, in pipeline order, each with its sign."""
    held = (part for node in status.nodes for part in _parts(node))
    sound = sorted(part for part in held if 0 <= part[0][0] < part[0][1] <= status.layer_count)
    return [
        Segment(
            holder=holder,
            name=plain(name),
            layers=layers,
            loaded_fraction=loaded_fraction,
            fill=glyphs.fill(place),
            style=node_colour(place),
        )
        for place, (layers, holder, name, loaded_fraction) in enumerate(sound)
    ]


def _parts(node: NodeStatus) -> Iterator[tuple[tuple[int, int], str, str, float]]:
    """(layers, holder, name, loaded fraction) of a node or, where it lends several, of each of its devices."""
    loaded_fraction = node.loaded_fraction if node.state == "loading" else 1.0
    if not several(node) and node.layers is not None:
        yield node.layers, node.id, node.name, loaded_fraction
    for device in several(node):
        if device.layers is not None:
            yield device.layers, _holder(node, device), f"{node.name} {device.device}", loaded_fraction


def _layers(segments: Sequence[Segment], layer_count: int, glyphs: Glyphs, cells: int) -> RenderResult:
    if not segments:
        return
    yield Text("")
    yield Padding(bar(segments, layer_count, cells, glyphs.empty), (0, 1))
    yield Padding(boundaries(segments, layer_count, cells), (0, 1))
    yield Padding(legend(segments, glyphs), (0, 1))


def _link_words(link: LinkStatus) -> str:
    ends = f"{plain(link.source)} to {plain(link.target)}"
    return f"{ends}: {speed(link.bytes_per_s)}, activations {plain(link.activations)}"


def _remarks(status: ClusterStatus, glyphs: Glyphs, width: int) -> RenderResult:
    """What the table has no room for: links, relayed ones, and on wide terminals the planner's reasons."""
    nodes = status.nodes
    lines = [_link_words(link) for link in status.links if link.bytes_per_s]
    lines += [
        f"{plain(node.name)}: no direct link to the next stage, the head relays"
        for node in nodes
        if node.layers is not None and not node.direct
    ]
    if width >= _WIDE:
        lines += [f"{plain(node.name)}: {plain(node.why)}" for node in nodes if node.why]
    if lines:
        yield Text("")
    for line in lines:
        yield Padding(Text(f"{glyphs.bullet} {line}", style="dim"), (0, 1))
