"""What a link is to the rooms above: the interfaces that TLS links (`link`) and in-memory links (`inproc`) share.

Types only: no socket, thread or loop is touched here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from transport.errors import TransportError
from transport.messages import Hello, Message
from transport.types import Address, NodeId, TensorSpec


@dataclass(frozen=True, slots=True)
class TensorBuffer:
    """A tensor's description and its bytes (C-contiguous, format "B"). `data` is never copied in Python."""

    spec: TensorSpec
    data: memoryview


@dataclass(frozen=True, slots=True)
class Received:
    """One frame, decoded."""

    epoch: int
    number: int
    message: Message
    tensors: dict[str, TensorBuffer] = field(default_factory=dict[str, TensorBuffer])


class ControlLink(Protocol):
    """Small messages both ways, in order, on the event loop. `hello` is the other side's, already checked."""

    @property
    def hello(self) -> Hello: ...

    @property
    def address(self) -> Address: ...

    async def send(self, message: Message) -> None:
        """Raises LinkClosedError; waits at most the link's send deadline."""
        ...

    async def receive(self) -> Message:
        """The next message. Raises LinkClosedError at the end, RemoteProtocolError on garbage."""
        ...

    async def close(self, reason: str = "") -> None: ...


class DataSender(Protocol):
    """The sending end of a data connection: one direction, one thread."""

    @property
    def hello(self) -> Hello: ...

    def send(self, epoch: int, number: int, message: Message, tensors: Sequence[TensorBuffer]) -> None:
        """Queue a frame from any thread. Raises LinkClosedError, or LinkBusyError when the bounded queue is full."""
        ...

    def close(self) -> None:
        """End the connection soon; returns at once."""
        ...


class DataSink(Protocol):
    """Where accepted data connections deliver. Both methods are called on the connection's own thread."""

    def on_frame(self, sender: NodeId, received: Received) -> None: ...

    def on_closed(self, sender: NodeId, error: TransportError | None) -> None: ...


Closed = Callable[[NodeId, TransportError | None], None]
"""Called once, on any thread, when a data sender's connection ends: the node, and the error unless on purpose."""

ControlHandler = Callable[[ControlLink], Awaitable[None]]
"""Runs in its own task for each accepted control link; the link closes when it returns."""


class Network(Protocol):
    """How a node reaches others. `endpoint.Endpoint` over TCP and TLS; `inproc.InprocNetwork` in memory.

    Incoming links go to the ControlHandler and the DataSink given at construction.
    """

    async def dial_control(self, addresses: Sequence[Address], expected: NodeId) -> ControlLink:
        """Tries the addresses in order. Raises UnreachableError, TrustError, IncompatibleError."""
        ...

    async def dial_data(self, addresses: Sequence[Address], expected: NodeId, on_closed: Closed) -> DataSender:
        """As `dial_control`, for a data connection in the sending direction."""
        ...

    async def close(self) -> None: ...
