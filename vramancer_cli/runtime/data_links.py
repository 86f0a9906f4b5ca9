"""Dialling a data link within a deadline, and what a data link of the runtime carries.

Never torch; never what happens when a link breaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from transport.contracts import Closed, DataSender, Network, Received
from transport.errors import RemoteProtocolError, UnreachableError
from transport.messages import Activation, Plan
from transport.types import Address, NodeId

DIAL_DEADLINE_S = 6.0
HIDDEN = "hidden_states"
"""The name of an activation's tensor."""


async def dial(network: Network, addresses: Sequence[Address], node: NodeId, on_closed: Closed) -> DataSender:
    """A data link to `node` at the first of `addresses` that answers. Raises TransportError."""
    try:
        async with asyncio.timeout(DIAL_DEADLINE_S):
            return await network.dial_data(addresses, node, on_closed)
    except TimeoutError:
        tried = ", ".join(str(address) for address in addresses)
        raise UnreachableError(f"None of {tried} answered within {DIAL_DEADLINE_S:.0f} s.") from None


def node_after(plan: Plan, first: int) -> NodeId:
    """Who gets the results of the stages that the node of stage `first` holds."""
    following = plan.run(first).stop
    return plan.stages[following].node if following < len(plan.stages) else plan.ends


def activation(received: Received) -> Activation:
    """The frame's message. Raises RemoteProtocolError for anything but an activation with its tensor."""
    message = received.message
    if not isinstance(message, Activation) or HIDDEN not in received.tensors:
        raise RemoteProtocolError("A data link carried something else than an activation.")
    return message
