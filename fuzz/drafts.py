"""Frames to be spoiled: a valid one of every message type, made from the types themselves, and its parts in the open.

A message that is added to `transport.messages` is fuzzed from then on, without a word here.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import inspect

from transport.codec import encode
from transport.contracts import TensorBuffer
from transport.framing import HEADER_BYTES, FrameHeader
from transport.messages import MESSAGES, Activation, BlockCopy, Hello, Message, Step, StepRow
from transport.types import DTYPE_BYTES, TensorSpec, Versions

NODE: Final = "0123456789abcdef" * 2
OWN: Final = Hello(1, 0, Versions("0.1.0", "2.13.0", "5.23.0"), "fedcba9876543210" * 2, "oak", "control")
TEXTS: Final = (
    "",
    "elm",
    NODE,
    "a b",
    "größe",
    "🦌" * 9,
    "x" * 130,
    "cpu",
    "\x1b[31m",
    "line\nline",
    "/etc/passwd",
    "ab" * 32,
)
NUMBERS: Final = (0, 1, 2, 3, 7, 16, 41, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**32, 2**53 + 1, 2**63 - 1)
LONGEST: Final = 4


@dataclass(frozen=True, slots=True)
class Draft:
    """A frame's parts. `pack` repairs both checksums; lengths are the true ones unless they are given."""

    type: int
    meta: bytes
    payload: bytes = b""
    flags: int = 0
    epoch: int = 0
    number: int = 0
    major: int = 1
    minor: int = 0
    meta_length: int | None = None
    meta_crc32: int | None = None
    payload_length: int | None = None

    @classmethod
    def of(cls, frame: bytes) -> Draft:
        """From a whole, valid frame."""
        header = FrameHeader.unpack(frame[:HEADER_BYTES])
        meta = frame[HEADER_BYTES : HEADER_BYTES + header.meta_length]
        payload = frame[HEADER_BYTES + header.meta_length :]
        return cls(header.type, meta, payload, header.flags, header.epoch, header.number, header.major, header.minor)

    def pack(self) -> bytes:
        lengths = len(self.meta), len(self.payload)
        meta_length = lengths[0] if self.meta_length is None else self.meta_length
        payload_length = lengths[1] if self.payload_length is None else self.payload_length
        crc = zlib.crc32(self.meta) if self.meta_crc32 is None else self.meta_crc32
        header = FrameHeader(
            self.major, self.minor, self.type, self.flags, self.epoch, self.number, meta_length, crc, payload_length
        )
        return header.pack() + self.meta + self.payload


def hello_frame(kind: str, node: str = NODE) -> bytes:
    return encode(0, 0, msgspec.structs.replace(OWN, node=node, name="elm", kind=kind))[0]


def valid_draft(type_id: int, rng: random.Random) -> Draft:
    """One that `codec.decode` takes."""
    if type_id == Activation.type_id:
        return _activation(rng)
    message: Message = make(_info(MESSAGES[type_id]), rng)
    if isinstance(message, Hello):
        message = msgspec.structs.replace(OWN, features=message.features, minor=message.minor)
    return Draft.of(encode(rng.choice(NUMBERS), rng.choice(NUMBERS), message)[0])


def _activation(rng: random.Random) -> Draft:
    rows = tuple(_row(rng) for _ in range(rng.randrange(LONGEST)))
    count = sum(row.count for row in rows)
    ids = tuple(rng.randrange(50_000) for _ in range(count)) if rng.random() < 0.3 else ()
    epoch, number = rng.choice(NUMBERS), rng.choice(NUMBERS)
    step = Step(
        epoch,
        number,
        rows,
        tuple(rng.choice(NUMBERS) for _ in range(rng.randrange(3))),
        token_ids=ids,
        copies=_copies(rng),
    )
    head, payload = encode(epoch, number, Activation(rng.randrange(4), step), _tensors(rng))
    return Draft.of(b"".join([head, *payload]))


def _copies(rng: random.Random) -> tuple[BlockCopy, ...]:
    return tuple(BlockCopy(*(rng.choice(NUMBERS) for _ in range(3))) for _ in range(rng.choice((0, 0, 1, 3))))


def _row(rng: random.Random) -> StepRow:
    groups = rng.randrange(3)
    blocks = tuple(tuple(rng.choice(NUMBERS) for _ in range(rng.randrange(4))) for _ in range(groups))
    first = tuple(rng.randrange(9) for _ in range(groups))
    return StepRow(rng.choice(NUMBERS), rng.choice(NUMBERS), rng.randrange(6), first, blocks, rng.randrange(4))


def _tensors(rng: random.Random) -> list[TensorBuffer]:
    """Wider dtypes first, as the wire wants it."""
    dtypes = sorted(rng.choices(list(DTYPE_BYTES), k=rng.randrange(4)), key=lambda d: -DTYPE_BYTES[d])
    made: list[TensorBuffer] = []
    for index, dtype in enumerate(dtypes):
        shape = tuple(rng.randrange(5) for _ in range(rng.randrange(4)))
        size = DTYPE_BYTES[dtype]
        for dimension in shape:
            size *= dimension
        made.append(TensorBuffer(TensorSpec(f"t{index}", dtype, shape, 0), memoryview(rng.randbytes(size))))
    return made


# --- values of any type --------------------------------------------------------------------------------------


@cache
def _info(message: type[Message]) -> inspect.Type:
    return inspect.type_info(message)


def make(kind: inspect.Type, rng: random.Random) -> Any:
    """A value that msgspec takes for this type. Raises TypeError for a type that is not used on the wire yet."""
    match kind:
        case inspect.StructType():
            return kind.cls(**{field.name: make(field.type, rng) for field in kind.fields})
        case inspect.IntType():
            low, high = kind.ge or 0, kind.le if kind.le is not None else 2**63 - 1
            return rng.choice([n for n in NUMBERS if low <= n <= high])
        case inspect.FloatType():
            return min(rng.choice((0.5, 1.0, 3600.0)), kind.le if kind.le is not None else 3600.0)
        case inspect.StrType():
            return rng.choice(TEXTS)
        case inspect.BytesType():
            low, high = kind.min_length or 0, kind.max_length if kind.max_length is not None else 40
            return rng.randbytes(min(max(low, rng.choice((0, 1, 40))), high))
        case inspect.BoolType():
            return rng.random() < 0.5
        case inspect.LiteralType():
            return rng.choice(list(kind.values))
        case inspect.VarTupleType() | inspect.ListType():
            low, high = kind.min_length or 0, kind.max_length if kind.max_length is not None else LONGEST
            return tuple(make(kind.item_type, rng) for _ in range(min(max(low, rng.randrange(LONGEST)), high)))
        case inspect.DictType():
            return {make(kind.key_type, rng): make(kind.value_type, rng) for _ in range(rng.randrange(LONGEST))}
        case inspect.UnionType():
            return make(rng.choice(kind.types), rng)
        case inspect.NoneType():
            return None
        case _:
            raise TypeError(f"no values are known for {kind}")


# --- spoiling by part ----------------------------------------------------------------------------------------


def lie_in_header(draft: Draft, rng: random.Random) -> Draft:
    """One field of the header says something else; the checksums agree."""
    edges = (0, 1, 63, 255, 256, len(draft.meta) + 1, 1 << 20, (1 << 20) + 1, 2**31, 2**32 - 1)
    big = (*edges, len(draft.payload) + 1, 256 << 20, (256 << 20) + 1, 2**63 - 1, 2**63, 2**64 - 1)
    match rng.choice(("type", "flags", "epoch", "number", "major", "minor", "meta", "payload", "crc")):
        case "type":
            return replace(draft, type=rng.choice((0, *MESSAGES, *MESSAGES, 99, 255, 65535)))
        case "flags":
            return replace(draft, flags=rng.choice((1, 1, 2, 255)), type=rng.choice((draft.type, 999)))
        case "epoch":
            return replace(draft, epoch=rng.choice(big))
        case "number":
            return replace(draft, number=rng.choice(big))
        case "major":
            return replace(draft, major=rng.choice((0, 2, 255)))
        case "minor":
            return replace(draft, minor=rng.choice((1, 255)))
        case "meta":
            return replace(draft, meta_length=rng.choice(edges))
        case "payload":
            return replace(draft, payload_length=rng.choice(big))
        case _:
            return replace(draft, meta_crc32=rng.choice((0, 2**32 - 1, zlib.crc32(draft.meta) ^ 1)))


def lie_in_table(draft: Draft, rng: random.Random) -> Draft:
    """The table of tensors says something else than the payload holds."""
    message, *rest = msgspec.msgpack.decode(draft.meta)
    table = [list(spec) for spec in (rest[0] if rest else [])] or [["t0", "int8", [len(draft.payload)], 0]]
    spec = rng.choice(table)
    match rng.randrange(7):
        case 0:
            spec[0] = rng.choice(("t0", "", "n" * 129, "\0", *[s[0] for s in table]))
        case 1:
            spec[1] = rng.choice((*DTYPE_BYTES, "float64", "object", "", "x" * 500))
        case 2:
            spec[2] = [
                rng.choice((0, 1, 2, 5, 2**31 - 1, 2**31, 2**62, 2**63 - 1)) for _ in range(rng.choice((1, 2, 8, 9)))
            ]
        case 3:
            spec[3] = rng.choice((0, 1, 3, 4, len(draft.payload), 2**31, 2**63 - 1))
        case 4:
            table = table * rng.choice((2, 33, 65))
        case 5:
            table.reverse()
        case _:
            return replace(
                draft, payload=rng.choice((draft.payload[:-1], draft.payload + b"\0", b"", draft.payload * 2))
            )
    return replace(draft, meta=msgspec.msgpack.encode([message, table]))
