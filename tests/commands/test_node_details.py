from __future__ import annotations

from dataclasses import replace

from rich.cells import cell_len

from commands.node_details import NodeDetails
from tests.helpers.boards import CLUSTER, DESK, drawn


def test_every_fact_of_every_node_is_there() -> None:
    text = " ".join(" ".join(drawn(NodeDetails(CLUSTER), 80)).split())
    for node in CLUSTER.nodes:
        for fact in (node.name, node.id, node.address, node.os, node.device_name, node.why):
            assert fact in text
    assert "round trip 15 ms, relayed by the head" in text
    assert "0–39 (40 layers), 204800 layer-tokens computed" in text


def test_long_reasons_wrap_inside_the_width() -> None:
    wordy = replace(CLUSTER, nodes=(replace(DESK, why="because " * 60),))
    lines = drawn(NodeDetails(wordy), 80)
    assert max(cell_len(line) for line in lines) <= 80
    assert " ".join(lines).count("because") == 60


def test_a_name_cannot_command_the_terminal() -> None:
    hostile = replace(CLUSTER, nodes=(replace(DESK, name="\x1b[2Jx", address="\x1b[1m[b]"),))
    assert "\x1b" not in "".join(drawn(NodeDetails(hostile), 80))
