"""What a state says of each node's devices, as the planner wants it: limits, and what was measured.

Pure; never sockets, clocks, torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from transport.types import NodeId
from vramancer_cli.cluster.records import NodeRecord
from vramancer_cli.planning.facts import DeviceCapacity


def capacities(nodes: Iterable[tuple[NodeId, NodeRecord]]) -> tuple[DeviceCapacity, ...]:
    """The devices of these nodes, by node id."""
    return tuple(device for _, record in sorted(nodes, key=lambda pair: pair[0]) for device in _devices(record))


def present(nodes: Mapping[NodeId, NodeRecord]) -> tuple[DeviceCapacity, ...]:
    """Of all nodes that are there, may they be planned with or not: what serves now may be one of these."""
    return capacities((node, record) for node, record in nodes.items() if record.alive)


def load_bytes_per_s(nodes: Mapping[NodeId, NodeRecord]) -> dict[NodeId, float]:
    """How fast nodes loaded their layers; without those of which it is not known."""
    return {node: record.load_bytes_per_s for node, record in nodes.items() if record.load_bytes_per_s}


def _devices(record: NodeRecord) -> Iterator[DeviceCapacity]:
    facts, loads = record.facts, dict(enumerate(record.load.devices))
    for position, (offered, limit_bytes) in enumerate(zip(facts.devices, record.limits, strict=True)):
        name = facts.name if len(facts.devices) == 1 else f"{facts.name} {offered.facts}"
        load = loads.get(position)
        yield DeviceCapacity(
            facts.node_id,
            name,
            offered.facts,
            limit_bytes,
            position,
            speed=offered.speed,
            layer_s=load.layer_s if load else 0.0,
            layer_token_s=load.layer_token_s if load else 0.0,
            round_trip_s=record.best_round_trip_s,
        )
