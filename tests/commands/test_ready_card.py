from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from commands.ready_card import ready_card
from transport.types import Address


@dataclass
class Ready:
    """The shape of node.NodeReady, whose module needs torch."""

    api_url: str = "http://127.0.0.1:5000"
    node_port: int = 5001
    addresses: tuple[Address, ...] = (Address("192.168.1.20", 5001), Address("fd00::2", 5001))
    role: str = "head"
    cluster: str = "desk"
    code: str | None = "4-otter-maple-drum"
    waiting_for: str = ""


def shown(**more: Any) -> list[str]:
    return ready_card(Ready(**more)).plain.splitlines()  # pyright: ignore[reportArgumentType]


def test_a_head_says_how_others_join() -> None:
    lines = shown()
    assert lines[0] == "VRAMancer answers at http://127.0.0.1:5000"
    assert any(line.endswith(" vramancer join --auto-discover --code 4-otter-maple-drum") for line in lines)
    assert any(line.endswith(" vramancer join 192.168.1.20 --code 4-otter-maple-drum") for line in lines)


def test_another_node_port_is_in_the_command() -> None:
    elsewhere = (Address("192.168.1.20", 7001),)
    assert any("join 192.168.1.20:7001 --code" in line for line in shown(node_port=7001, addresses=elsewhere))
    six = (Address("fd00::2", 7001),)
    assert any("join [fd00::2]:7001 --code" in line for line in shown(node_port=7001, addresses=six))


def test_a_machine_on_no_network_is_only_looked_for() -> None:
    assert [line.split("vramancer ")[1] for line in shown(addresses=()) if "join" in line] == [
        "join --auto-discover --code 4-otter-maple-drum"
    ]


def test_a_worker_says_what_it_waits_for() -> None:
    text = "\n".join(shown(role="worker", code=None, waiting_for="the master"))
    assert text.startswith("This machine is part of desk.")
    assert "--code" not in text
    assert "waiting for the master" in text


def test_a_cluster_name_cannot_command_the_terminal() -> None:
    assert "\x1b" not in "".join(shown(cluster="\x1b[2J"))
