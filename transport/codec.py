"""Messages to frames and back: msgpack meta with the message and a bounded table of tensors.

Pure: no socket, loop, thread or clock. What comes out of `decode` has known dtypes, bounded shapes and non-negative
numbers (see `types.Natural`); what the numbers mean to a running plan is for the rooms above to check.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Annotated, Final, Generic, TypeVar

import msgspec

from transport.contracts import Received, TensorBuffer
from transport.errors import LocalProtocolError, RemoteProtocolError
from transport.framing import OPTIONAL, FrameHeader
from transport.messages import MESSAGES, PROTOCOL_MAJOR, PROTOCOL_MINOR, Activation, Hello, Message, Step
from transport.types import DTYPE_BYTES, TensorSpec

MAX_TENSORS: Final = 256
MAX_RANK: Final = 8
MAX_DIMENSION: Final = 2**31 - 1
MAX_NAME_CHARACTERS: Final = 128

_M = TypeVar("_M", bound=Message)
_Table = Annotated[tuple[TensorSpec, ...], msgspec.Meta(max_length=MAX_TENSORS)]


class Meta(msgspec.Struct, Generic[_M], frozen=True, array_like=True):
    """What a frame's meta holds; the message's class follows from the frame's type."""

    message: _M
    tensors: _Table = ()


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODERS: Final[dict[int, msgspec.msgpack.Decoder[Meta[Message]]]] = {
    type_id: msgspec.msgpack.Decoder(Meta[message_class]) for type_id, message_class in MESSAGES.items()
}


def encode(
    epoch: int, number: int, message: Message, tensors: Sequence[TensorBuffer] = ()
) -> tuple[bytes, list[memoryview]]:
    """Header and meta as one piece, then each tensor's own memory, in the order given (the wider dtypes first).

    Offsets are laid out here; those in the given specs are ignored. The views are the tensors' memory: it must not
    change until the frame is sent. Raises LocalProtocolError for tensors or steps that `decode` would refuse.
    """
    try:
        table, payload_length = _lay_out(tensors)
        meta = _ENCODER.encode(Meta(message, table))
        header = FrameHeader(
            PROTOCOL_MAJOR, PROTOCOL_MINOR, message.type_id, OPTIONAL if message.optional else 0, epoch, number,
            len(meta), zlib.crc32(meta), payload_length,
        )  # fmt: skip
        check_type(header)
        _check_message(header, message)
        return header.pack() + meta, [tensor.data for tensor in tensors if tensor.data.nbytes]
    except RemoteProtocolError as error:
        raise LocalProtocolError(str(error)) from error
    except (struct.error, ArithmeticError, ValueError, TypeError) as error:
        raise LocalProtocolError(f"A {type(message).__name__} cannot be sent: {error}.") from error


def decode(header: FrameHeader, meta: memoryview | bytes, payload: memoryview) -> Received | None:
    """The message, its tensors being slices of `payload`; None for an optional message that is not known here.

    Raises RemoteProtocolError for everything else that is not exactly right.
    """
    check_type(header)
    decoder = _DECODERS.get(header.type)
    if decoder is None:
        return None
    try:
        content = decoder.decode(meta)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        name = MESSAGES[header.type].__name__
        raise RemoteProtocolError(f"A {name} arrived that cannot be read: {error}.") from error
    _check_message(header, content.message)
    return Received(header.epoch, header.number, content.message, _cut(content.tensors, payload))


def check_type(header: FrameHeader) -> None:
    """Refuse what `decode` could only refuse: can run before meta and payload have arrived.

    A Hello is read in any protocol version (its layout never changes), so that both can be named to the user.
    """
    if header.type not in MESSAGES and not header.optional:
        raise RemoteProtocolError(f"A message of unknown type {header.type} arrived.")
    if header.major != PROTOCOL_MAJOR and header.type != Hello.type_id:
        raise RemoteProtocolError(f"A message of protocol {header.major}.{header.minor} arrived.")


def _lay_out(tensors: Sequence[TensorBuffer]) -> tuple[tuple[TensorSpec, ...], int]:
    """The specs with their offsets filled in, and the payload's length."""
    table: list[TensorSpec] = []
    offset = 0
    for tensor in tensors:
        spec, view = tensor.spec, tensor.data
        size_bytes = _checked_size(spec)
        if view.ndim != 1 or view.format != "B" or not view.c_contiguous or view.nbytes != size_bytes:
            raise LocalProtocolError(f"Tensor {spec.name!r} is not {size_bytes} plain bytes in a row.")
        _check_place(spec, offset, offset)
        table.append(TensorSpec(spec.name, spec.dtype, spec.shape, offset))
        offset += size_bytes
    _check_count(table)
    return tuple(table), offset


def _cut(table: tuple[TensorSpec, ...], payload: memoryview) -> dict[str, TensorBuffer]:
    """They fill the payload: in order, no gap, no overlap, each aligned to its element."""
    tensors: dict[str, TensorBuffer] = {}
    end = 0
    for spec in table:
        size_bytes = _checked_size(spec)
        _check_place(spec, spec.offset, end)
        end += size_bytes
        tensors[spec.name] = TensorBuffer(spec, payload[spec.offset : end])
    if end != len(payload):
        raise RemoteProtocolError(f"A frame's tensors need {end} bytes, its payload has {len(payload)}.")
    _check_count(table)
    return tensors


def _check_place(spec: TensorSpec, offset: int, due: int) -> None:
    if offset != due or offset % DTYPE_BYTES[spec.dtype]:
        raise RemoteProtocolError(f"Tensor {spec.name!r} is misplaced in its frame; wider dtypes come first.")


def _check_count(table: Sequence[TensorSpec]) -> None:
    if len(table) > 1 and (len(table) > MAX_TENSORS or len({spec.name for spec in table}) != len(table)):
        raise RemoteProtocolError("A frame's tensors are too many, or two have one name.")


def _checked_size(spec: TensorSpec) -> int:
    """The tensor's bytes. Raises RemoteProtocolError for a dtype that is not known or a shape that cannot be."""
    element_bytes = DTYPE_BYTES.get(spec.dtype)
    if element_bytes is None:
        raise RemoteProtocolError(f"A tensor has the unknown dtype {spec.dtype[:MAX_NAME_CHARACTERS]!r}.")
    fits = len(spec.name) <= MAX_NAME_CHARACTERS and len(spec.shape) <= MAX_RANK
    size_bytes = reach_bytes = element_bytes
    for dimension in spec.shape:
        fits = fits and 0 <= dimension <= MAX_DIMENSION
        size_bytes *= dimension
        reach_bytes *= dimension or 1
    # An empty tensor may claim any size in its other dimensions: bounded too, because strides are made of them.
    if not fits or reach_bytes >= 2**63:
        raise RemoteProtocolError(f"Tensor {spec.name[:MAX_NAME_CHARACTERS]!r} has an impossible name or shape.")
    return size_bytes


def _check_message(header: FrameHeader, message: Message) -> None:
    """What the classes in `messages` say in words and their types cannot."""
    if isinstance(message, Activation):
        _check_step(header, message.step)


def _check_step(header: FrameHeader, step: Step) -> None:
    if (step.epoch, step.number) != (header.epoch, header.number):
        raise RemoteProtocolError(
            f"Step {step.epoch}/{step.number} came in a frame of step {header.epoch}/{header.number}."
        )
    for row in step.rows:
        if len(row.first_block) != len(row.blocks):
            raise RemoteProtocolError(f"Step {step.epoch}/{step.number} has a row with half a block table.")
    if step.token_ids and len(step.token_ids) != step.token_count:
        raise RemoteProtocolError(f"Step {step.epoch}/{step.number} has token ids for other rows than its own.")
