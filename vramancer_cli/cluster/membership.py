"""Who is still there: silence becomes a NodeLost event.

A node that joins again replaces its own record (`state.apply`). Pure: `now` is an argument; never sockets, clocks.
"""

from __future__ import annotations

from vramancer_cli.cluster.events import NodeLost
from vramancer_cli.cluster.state import State

MISSED_HEARTBEATS = 3


def silent(state: State, now: float, interval_s: float, missed: int = MISSED_HEARTBEATS) -> tuple[NodeLost, ...]:
    """The nodes not heard for more than `missed` intervals, as events; never the head, by node id."""
    deadline_s = missed * interval_s
    return tuple(
        NodeLost(node, f"silent for {now - record.last_heard:.1f} s", now)
        for node, record in sorted(state.nodes.items())
        if record.alive and not record.is_head and now - record.last_heard > deadline_s
    )
