"""Who is still there, who gets nowhere, and who may be tried again: time becomes NodeLost, NodeRested and
QuarantineEnded events.

A node that joins again replaces its own record (`state.apply`). Pure: `now` is an argument; never sockets, clocks.
"""

from __future__ import annotations

from vramancer_cli.cluster.events import NodeLost, NodeRested, QuarantineEnded
from vramancer_cli.cluster.state import State

MISSED_HEARTBEATS = 3
LOADING_S = 600.0
FETCHING_S = 7200.0
"""How long a load may get no further: before its first bytes, the node may be fetching the whole checkpoint."""


def silent(state: State, now: float, interval_s: float, missed: int = MISSED_HEARTBEATS) -> tuple[NodeLost, ...]:
    """The nodes not heard for more than `missed` intervals, as events; never the head, by node id."""
    deadline_s = missed * interval_s
    return tuple(
        NodeLost(node, f"silent for {now - record.last_heard:.1f} s", now, silent=True)
        for node, record in sorted(state.nodes.items())
        if record.alive and not record.is_head and now - record.last_heard > deadline_s
    )


def stuck(state: State, now: float) -> tuple[NodeLost, ...]:
    """The nodes whose load has got no further for too long, as events; never the head, by node id."""
    lost: list[NodeLost] = []
    for node, record in sorted(state.nodes.items()):
        stage = record.stage
        if stage is None or stage.status != "loading" or record.is_head:
            continue
        bound_s = LOADING_S if stage.loaded_fraction > 0 else FETCHING_S
        if now - stage.moved_at > bound_s:
            lost.append(NodeLost(node, f"its load got no further for {bound_s / 60:.0f} min", now))
    return tuple(lost)


def rested(state: State, now: float) -> tuple[NodeRested, ...]:
    """The nodes that have been planned without for long enough, by node id."""
    return tuple(
        NodeRested(node)
        for node, record in sorted(state.nodes.items())
        if record.trouble.resting_until is not None and now >= record.trouble.resting_until
    )


def released(state: State, now: float) -> tuple[QuarantineEnded, ...]:
    """The nodes whose quarantine is over, by node id."""
    return tuple(
        QuarantineEnded(node)
        for node, record in sorted(state.nodes.items())
        if record.quarantine is not None and now >= record.quarantine.until
    )
