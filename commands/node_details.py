"""The list of `nodes`: who each node is, where it answers, what it did, and why it holds what it holds.

Rich renderables only. Never imports torch or transport.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from commands.board import memory_gauge, node_state, several
from commands.glyphs import Glyphs, glyphs_for
from commands.phrases import layer_words, memory, round_trip
from commands.terminal import plain
from vramancer_cli.cluster.status import ClusterStatus, DeviceStatus, NodeStatus


@dataclass(frozen=True, slots=True)
class NodeDetails:
    """One block per node."""

    status: ClusterStatus

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        glyphs = glyphs_for(console, options)
        for index, node in enumerate(self.status.nodes):
            yield _heading(node, glyphs)
            last = index == len(self.status.nodes) - 1
            yield Padding(_facts(node, glyphs), (0, 0, 0 if last else 1, 2))


def _heading(node: NodeStatus, glyphs: Glyphs) -> Text:
    return Text.assemble((plain(node.name), "bold"), f"  {node.role}  ", node_state(node, glyphs))


def _facts(node: NodeStatus, glyphs: Glyphs) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    used = f" {memory(node.memory_used_bytes, node.memory_limit_bytes)}"
    table.add_row("id", plain(node.id))
    table.add_row("address", Text(_address(node, glyphs)))
    table.add_row("system", Text(plain(node.os)))
    if not several(node):
        table.add_row("device", Text(f"{plain(node.device)}  {plain(node.device_name)}"))
    table.add_row("memory", Text.assemble(memory_gauge(node, glyphs), used))
    table.add_row("layers", Text(layer_words(node.layers, node.layer_tokens, glyphs.dash)))
    for device in several(node):
        table.add_row(plain(device.device), _device_facts(device, glyphs))
    if node.why:
        table.add_row("why", Text(plain(node.why)))
    return table


def _device_facts(device: DeviceStatus, glyphs: Glyphs) -> Text:
    held = layer_words(device.layers, device.layer_tokens, glyphs.dash)
    figures = f" {memory(device.memory_used_bytes, device.memory_limit_bytes)}  {plain(device.device_name)}\n"
    return Text.assemble(memory_gauge(device, glyphs), figures, held)


def _address(node: NodeStatus, glyphs: Glyphs) -> str:
    trip = "" if node.round_trip_s is None else f", round trip {round_trip(node.round_trip_s, glyphs.dash)}"
    relayed = "" if node.direct or node.layers is None else ", relayed by the head"
    return f"{plain(node.address)}{trip}{relayed}"
