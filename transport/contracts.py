"""What a link is to the rooms above: the interfaces that TLS links (`link`) and in-memory links (`inproc`) share.

Types only: no socket, thread or loop is touched here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

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
    began_s: float = 0.0
    """When its first byte was here, by time.monotonic(); 0 where nobody measured it."""


OnSent = Callable[[int, float, float], None]
"""Called on whichever thread sent it: a frame's step number, and when the system began and ended to take it, by
time.monotonic()."""


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

    @property
    def bytes_per_s(self) -> int:
        """What a second brings to the other end, by its measure of large payloads; 0 before there were any."""
        ...

    def send(self, epoch: int, number: int, message: Message, tensors: Sequence[TensorBuffer]) -> None:
        """Queue a frame from any thread. Raises LinkClosedError, or LinkBusyError when the bounded queue is full."""
        ...

    def watch(self, on_sent: OnSent) -> None:
        """Tell `on_sent` of each frame from now on, where sending takes time."""
        ...

    def close(self) -> None:
        """End the connection soon; returns at once."""
        ...


class DataSink(Protocol):
    """Where accepted data connections deliver. Both methods are called on the connection's own thread."""

    def on_frame(self, sender: NodeId, received: Received) -> None: ...

    def on_closed(self, sender: NodeId, error: TransportError | None) -> None: ...


Answer = Callable[[Message, Sequence[TensorBuffer]], None]
"""Sends one answer on a bulk link, and waits until the system has taken it. Raises LinkClosedError, TimeoutError."""


class BulkSource(Protocol):
    """Where bulk links are served from. `serve` is called on each link's own thread, and may take its time."""

    def serve(self, asker: NodeId, request: Message, answer: Answer) -> None:
        """Answers an AskModel or AskPiece, once. A TransportError raised here ends the link."""
        ...


class BulkLink(Protocol):
    """The asking end of a bulk link, for one thread: blocking calls, answers in the order of the requests."""

    def ask(self, request: Message) -> None:
        """Send an AskModel or AskPiece. Raises LinkClosedError."""
        ...

    def answer(self) -> Received:
        """The next answer. Raises LinkClosedError, also for a long silence, and RemoteProtocolError."""
        ...

    def hang_up(self) -> None:
        """End the link, from any thread; who waits for an answer wakes up. Again: no effect."""
        ...


Closed = Callable[[NodeId, TransportError | None], None]
"""Called once, on any thread, when a data sender's connection ends: the node, and the error unless on purpose."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a conversation at a master's door ended, for its log: who came by which invitation; nothing that was said.

    `invitation`: `code in slot 4` or `token 1a2b3c4d`, the first digits of a hash. `tries`: wrong ones for that code
    so far. `code not open`: used, ended, worn out, or never made.
    """

    kind: Literal["admitted", "wrong code", "code not open", "wrong token", "removed", "renewed", "not renewed"]
    node: NodeId = ""
    invitation: str = ""
    tries: int = 0


class Book(Protocol):
    """A master's memory of whom it let in. Each call is back once it is kept; safe from any thread.

    `redeem` and `admit` raise TransportError when it cannot be kept: then nothing may be handed out.
    """

    def is_removed(self, node: NodeId) -> bool: ...

    def redeem(self, secret: bytes, node: NodeId, now: float) -> bool:
        """Spend a join token on `node`; False for one that is unknown, used or over, without telling which."""
        ...

    def admit(self, node: NodeId, how: str, now: float) -> None:
        """`node` gets its first certificate; `how`: by which invitation."""
        ...

    def note(self, outcome: Outcome, host: str) -> None:
        """For the log; `host`: the caller's IP. Returns at once, and raises nothing."""
        ...


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

    def shut_out(self, nodes: frozenset[NodeId]) -> None:
        """Cut every data link with these nodes, in and out, and have none with them from now on.

        Their control links are not touched: over those they are told.
        """
        ...

    async def close(self) -> None: ...
