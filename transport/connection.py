"""What two ends of a link say to each other, in which order: Hello first, who may send what, steps in sequence.

Pure protocol state: no socket, loop, thread or clock. `link` and `inproc` put bytes and time to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

import msgspec

from transport.codec import check_type, decode, encode
from transport.contracts import Received, TensorBuffer
from transport.errors import IncompatibleError, LinkClosedError, LocalProtocolError, RemoteProtocolError, TrustError
from transport.framing import (
    BULK_LIMITS,
    CONTROL_LIMITS,
    DATA_LIMITS,
    HEADER_BYTES,
    Allocate,
    Frame,
    FrameHeader,
    FrameParser,
    Limits,
    heap_buffer,
)
from transport.messages import (
    CARRIERS,
    MESSAGES,
    Activation,
    AskModel,
    AskPiece,
    Goodbye,
    Hello,
    LinkSpeed,
    Message,
    ModelFiles,
    NotServed,
    Piece,
)
from transport.types import LinkKind, NodeId

MAX_HELLO_BYTES: Final = 16 << 10


class Role(Enum):
    """Which end of which kind of link this is."""

    CONTROL = "control"
    DATA_SENDER = "data sender"
    DATA_RECEIVER = "data receiver"
    BULK_CALLER = "bulk caller"
    BULK_SERVER = "bulk server"


class State(Enum):
    """Where a link stands. GREETING: the other side's Hello has not come yet."""

    GREETING = "greeting"
    OPEN = "open"
    CLOSED = "closed"


_DATA_TYPES: Final = frozenset({Activation.type_id, LinkSpeed.type_id})
_ASKING_TYPES: Final = frozenset({AskModel.type_id, AskPiece.type_id})
_ANSWERING_TYPES: Final = frozenset({ModelFiles.type_id, Piece.type_id, NotServed.type_id})
_END: Final = frozenset({Goodbye.type_id})

DEPARTS: Final[dict[Role, frozenset[int]]] = {
    Role.CONTROL: frozenset(MESSAGES) - {Hello.type_id} - _DATA_TYPES - _ASKING_TYPES - _ANSWERING_TYPES,
    Role.DATA_SENDER: _END | {Activation.type_id},
    Role.DATA_RECEIVER: _END | {LinkSpeed.type_id},
    Role.BULK_CALLER: _END | _ASKING_TYPES,
    Role.BULK_SERVER: _END | _ANSWERING_TYPES,
}
"""The frame types that each end may send once OPEN."""

OTHER_END: Final[dict[Role, Role]] = {
    Role.CONTROL: Role.CONTROL,
    Role.DATA_SENDER: Role.DATA_RECEIVER,
    Role.DATA_RECEIVER: Role.DATA_SENDER,
    Role.BULK_CALLER: Role.BULK_SERVER,
    Role.BULK_SERVER: Role.BULK_CALLER,
}

ARRIVES: Final[dict[tuple[Role, State], frozenset[int]]] = {
    **{(role, State.GREETING): frozenset({Hello.type_id}) for role in Role},
    **{(role, State.OPEN): DEPARTS[other] for role, other in OTHER_END.items()},
}
"""The frame types that each end takes in each state; none where CLOSED."""

_LIMITS: Final[dict[Role, Limits]] = {
    Role.CONTROL: CONTROL_LIMITS,
    Role.DATA_SENDER: CONTROL_LIMITS,
    Role.DATA_RECEIVER: DATA_LIMITS,
    Role.BULK_CALLER: BULK_LIMITS,
    Role.BULK_SERVER: CONTROL_LIMITS,
}
"""What each end takes; its other end may send no more."""

_KINDS: Final[dict[Role, LinkKind]] = {
    Role.CONTROL: "control",
    Role.DATA_SENDER: "data",
    Role.DATA_RECEIVER: "data",
    Role.BULK_CALLER: "bulk",
    Role.BULK_SERVER: "bulk",
}


class Connection:
    """One end of one link. Bytes go into `parser`; its frames into `receive`.

    `own.kind` is set to fit the role. `peer` is the node that the certificate named, or None where there is none.
    """

    def __init__(self, role: Role, own: Hello, peer: NodeId | None, *, allocate: Allocate = heap_buffer) -> None:
        self.role = role
        self.state = State.GREETING
        self.own = msgspec.structs.replace(own, kind=_KINDS[role])
        self.parser = FrameParser(_LIMITS[role], allocate=allocate, admit=self._admit)
        self._peer = peer
        self._hello: Hello | None = None

    @property
    def hello(self) -> Hello:
        """The other side's, checked. Raises LocalProtocolError before it has come."""
        if self._hello is None:
            raise LocalProtocolError("The other side has not said Hello yet.")
        return self._hello

    def greeting(self) -> bytes:
        """Our own Hello: the first bytes to send."""
        head, _ = encode(0, 0, self.own)
        return head

    def send(
        self, message: Message, epoch: int = 0, number: int = 0, tensors: Sequence[TensorBuffer] = ()
    ) -> tuple[bytes, list[memoryview]]:
        """The pieces to send, in order; safe from any thread. Raises LocalProtocolError, LinkClosedError."""
        if self.state is State.CLOSED:
            raise LinkClosedError
        if self.state is State.GREETING or message.type_id not in DEPARTS[self.role]:
            raise LocalProtocolError(f"A {type(message).__name__} may not be sent on a {self.role.value} link now.")
        head, payload = encode(epoch, number, message, tensors)
        limits = _LIMITS[OTHER_END[self.role]]
        payload_length = sum(len(piece) for piece in payload)
        if len(head) - HEADER_BYTES > limits.max_meta_bytes or payload_length > limits.max_payload_bytes:
            raise LocalProtocolError(
                f"A {type(message).__name__} of {len(head) + payload_length} bytes is too large for this link."
            )
        return head, payload

    def receive(self, frame: Frame) -> Received | None:
        """The message of a frame; None for an optional one that is not known here.

        Raises RemoteProtocolError, and for a Hello also IncompatibleError and TrustError.
        """
        if self.state is State.GREETING:
            return self._receive_hello(frame)
        received = decode(frame.header, frame.meta, frame.payload)
        if received is not None and isinstance(received.message, Goodbye):
            self.state = State.CLOSED
        return received

    def _receive_hello(self, frame: Frame) -> Received:
        try:
            received = decode(frame.header, frame.meta, frame.payload)
        except RemoteProtocolError as error:
            if frame.header.major == self.own.major:
                raise
            raise _incompatible(self.own, frame.header.major, frame.header.minor) from error
        assert received is not None and isinstance(received.message, Hello), "admit lets nothing else in"
        check_hello(self.own, received.message, self._peer)
        self._hello = received.message
        self.state = State.OPEN
        return received

    def _admit(self, header: FrameHeader) -> None:
        """Hold a header against the state table, before anything is allocated for it."""
        check_type(header)
        allowed = ARRIVES.get((self.role, self.state), frozenset[int]())
        skipped = self.state is State.OPEN and header.type not in MESSAGES
        if header.type not in allowed and not skipped:
            name = MESSAGES[header.type].__name__ if header.type in MESSAGES else f"type {header.type}"
            raise RemoteProtocolError(f"A {name} arrived on a {self.role.value} link in state {self.state.value}.")
        if header.payload_length and header.type not in CARRIERS and not skipped:
            raise RemoteProtocolError(f"A {MESSAGES[header.type].__name__} arrived with a payload.")
        if header.type == Hello.type_id and header.meta_length > MAX_HELLO_BYTES:
            raise RemoteProtocolError("A Hello arrived that is too long.")


def check_hello(own: Hello, other: Hello, peer: NodeId | None) -> None:
    """Raises IncompatibleError (naming both versions), TrustError (not the node of the certificate), or
    RemoteProtocolError. Minor versions may differ.
    """
    if not all(text.isprintable() for text in _texts(other)):
        raise RemoteProtocolError("A Hello arrived with unprintable text.")
    if other.major != own.major:
        raise _incompatible(own, other.major, other.minor, f"'{other.name}'", other.versions.program)
    if other.kind != own.kind:
        raise RemoteProtocolError(f"A Hello for a {other.kind} link arrived on a {own.kind} link.")
    if peer is not None and other.node != peer:
        raise TrustError(
            f"'{other.name}' says that it is node {other.node[:8]}, but its certificate is for {peer[:8]}.",
            hint="Remove the state folder on that machine and join it again.",
        )


def _incompatible(
    own: Hello, major: int, minor: int, name: str = "the other machine", program: str = "of an unknown version"
) -> IncompatibleError:
    return IncompatibleError(
        f"This machine speaks protocol {own.major}.{own.minor} (VRAMancer {own.versions.program}), "
        f"{name} {major}.{minor} (VRAMancer {program}).",
        hint=f"Update VRAMancer on {'this machine' if own.major < major else name}.",
    )


def _texts(hello: Hello) -> tuple[str, ...]:
    versions = hello.versions
    return (hello.node, hello.name, versions.program, versions.torch, versions.transformers, *hello.features)


class StepOrder:
    """Lets steps through in sequence only: numbers from 0 without gaps in each epoch, epochs only growing."""

    def __init__(self) -> None:
        self._epoch = -1
        self._next = 0

    def accept(self, epoch: int, number: int) -> bool:
        """True: execute it. False: of an older epoch, drop it. Raises RemoteProtocolError for a gap or a repeat."""
        if epoch < self._epoch:
            return False
        expected = self._next if epoch == self._epoch else 0
        if number != expected:
            raise RemoteProtocolError(f"Step {epoch}/{number} arrived where {epoch}/{expected} was due.")
        self._epoch, self._next = epoch, number + 1
        return True
