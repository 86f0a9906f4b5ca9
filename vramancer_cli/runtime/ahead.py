"""The head's side of spare capacity: while a plan serves, each worker is told which layers to fetch ahead of time.

Told once for each plan and set of nodes. Which layers, is `planning.ahead`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transport.messages import FetchLayersAhead, Message, Plan
from transport.types import NodeId
from vramancer_cli.cluster.capacity import capacities
from vramancer_cli.cluster.state import State, candidates
from vramancer_cli.planning.ahead import layers_ahead
from vramancer_cli.planning.facts import DeviceCapacity


class Ahead:
    """`replan`: the plan with these devices, or None; `send` queues a message for a worker."""

    def __init__(
        self,
        replan: Callable[[Sequence[DeviceCapacity]], Plan | None],
        send: Callable[[NodeId, Message], None],
    ) -> None:
        self._replan = replan
        self._send = send
        self._told: object = None

    def tell(self, state: State) -> None:
        """Nothing where it has been told already, or while nothing serves."""
        plan = state.active_plan
        if plan is None or state.broken is not None or state.serving_epoch != plan.epoch:
            return
        usable = candidates(state)
        now = (plan.epoch, frozenset((node, record.joined_at, record.limits) for node, record in usable.items()))
        if now == self._told:
            return
        self._told = now
        for node, layers in layers_ahead(plan, capacities(usable.items()), self._replan).items():
            self._send(node, FetchLayersAhead(plan, layers))
