"""Ways to spoil bytes, and msgpack as no encoder writes it. Everything follows from the `random.Random` given."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

EDGES: Final = (
    0,
    1,
    2,
    7,
    8,
    63,
    64,
    65,
    127,
    128,
    255,
    256,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)
STRANGE_INTS: Final = (-1, -128, -(2**63), 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 10**9)


class Packed(bytes):
    """Bytes that stand for themselves inside a tree given to `pack`."""


STRANGE: Final = (
    Packed(b"\xc1"),  # the one byte that msgpack never uses
    Packed(b"\xdd\xff\xff\xff\xff"),  # an array of 2**32 - 1
    Packed(b"\xdd\x01\x00\x00\x00"),
    Packed(b"\xdf\xff\xff\xff\xff"),  # a map of as many
    Packed(b"\xdb\xff\xff\xff\xff"),  # text of 4 GiB
    Packed(b"\xc6\x7f\xff\xff\xff"),  # bytes of 2 GiB
    Packed(b"\xc9\xff\xff\xff\xff\x01"),
    Packed(b"\xa2\xc3\x28"),  # not UTF-8
    Packed(b"\xa3\xed\xa0\x80"),  # a lone surrogate
    Packed(b"\xd4\x05\x00"),  # an extension
    Packed(b"\xd6\xff\x00\x00\x00\x00"),  # a timestamp
    Packed(b"\xd7\xff\xff\xff\xff\xff\xff\xff\xff\xff"),  # one that is none
    Packed(b"\xca\x7f\xc0\x00\x00"),  # NaN in 32 bits
    Packed(b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00"),
    Packed(b"\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00"),  # infinity
    Packed(b"\xcb\x80\x00\x00\x00\x00\x00\x00\x00"),  # minus nought
    Packed(b"\xcf\x00\x00\x00\x00\x00\x00\x00\x01"),  # 1 in 64 bits
    Packed(b"\xd3\xff\xff\xff\xff\xff\xff\xff\xff"),
    Packed(b"\xd9\x01a"),
    Packed(b"\xdc\x00\x00"),
    Packed(b"\xc0"),
    Packed(b"\xc2"),
    Packed(b"\x90"),
    Packed(b"\x80"),
    Packed(b"\xa0"),
    Packed(b"\xc4\x00"),
)


# --- bytes --------------------------------------------------------------------------------------------------


def flip(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return bytes([rng.randrange(256)])
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    at, piece = rng.randrange(len(data) + 1), rng.randbytes(rng.choice((1, 2, 4, 8)))
    return data[:at] + piece + data[at + len(piece) :]


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def drop(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + data[at + rng.choice((1, 2, 4, 16)) :]


def double(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    return data[:end] + data[start:end] + data[end:]


def insert(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((rng.randbytes(4), b"\0" * 8, b"\xff" * 8, rng.choice(STRANGE))) + data[at:]


def lie_about_length(data: bytes, rng: random.Random) -> bytes:
    """An edge of the integers, in some width and order, over whatever stands there."""
    form = rng.choice(("<I", ">I", "<Q", ">Q", "<H", ">H", "B"))
    piece = struct.pack(form, rng.choice(EDGES) % (1 << 8 * struct.calcsize(form)))
    at = rng.randrange(len(data) + 1)
    return data[:at] + piece + data[at + len(piece) :]


BYTE_MUTATIONS: Final[Sequence[Callable[[bytes, random.Random], bytes]]] = (
    flip, flip, overwrite, cut, drop, double, insert, lie_about_length,
)  # fmt: skip


def spoil(data: bytes, rng: random.Random) -> bytes:
    """One of the above, now and then several."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(BYTE_MUTATIONS)(data, rng)
    return data


def splice(first: bytes, second: bytes, rng: random.Random) -> bytes:
    return first[: rng.randrange(len(first) + 1)] + second[rng.randrange(len(second) + 1) :]


# --- msgpack ------------------------------------------------------------------------------------------------


def pack(value: Any, rng: random.Random, oddity: float = 0.0) -> bytes:
    """msgpack of a tree of lists, dicts, plain values and `Packed`; `oddity`: how often wider than need be."""
    match value:
        case Packed():
            return bytes(value)
        case dict():
            return _head(len(value), 0x80, b"\xde", b"\xdf", rng, oddity) + b"".join(
                pack(part, rng, oddity) for item in value.items() for part in item
            )
        case Pairs():
            return _head(len(value.items), 0x80, b"\xde", b"\xdf", rng, oddity) + b"".join(
                pack(part, rng, oddity) for item in value.items for part in item
            )
        case list() | tuple():
            return _head(len(value), 0x90, b"\xdc", b"\xdd", rng, oddity) + b"".join(
                pack(part, rng, oddity) for part in value
            )
        case str() if rng.random() < oddity:
            data = value.encode("utf-8", "surrogatepass")
            return b"\xdb" + struct.pack(">I", len(data)) + data
        case int() if not isinstance(value, bool) and 0 <= value < 2**64 and rng.random() < oddity:
            return b"\xcf" + struct.pack(">Q", value)
        case _:
            return msgspec.msgpack.encode(value)


class Pairs:
    """A map whose keys may come twice."""

    def __init__(self, items: list[tuple[Any, Any]]) -> None:
        self.items = items


def _head(count: int, small: int, medium: bytes, large: bytes, rng: random.Random, oddity: float) -> bytes:
    if rng.random() < oddity:
        return large + struct.pack(">I", count)
    return bytes([small | count]) if count < 16 else medium + struct.pack(">H", count)


def strange_value(rng: random.Random) -> Any:
    """What does not belong where it is put."""
    match rng.randrange(8):
        case 0 | 1:
            return rng.choice(STRANGE_INTS)
        case 2 | 3:
            return rng.choice(STRANGE)
        case 4:
            return rng.choice(
                (1.5, -0.0, float("nan"), float("inf"), True, None, "", "\x1b[2J", "a" * 300, b"\xff" * 40)
            )
        case 5:
            return Packed(b"\x91" * rng.choice((2, 100, 2000)) + b"\x90")
        case 6:
            return [[]] * rng.choice((1, 70, 300))
        case _:
            return {"type": [], "": None, "x": 0}


def spoil_tree(tree: Any, rng: random.Random) -> Any:
    """A copy with one place changed: replaced, dropped, doubled, exchanged, or given another key."""
    if rng.random() < 0.12 or not isinstance(tree, (list, dict)) or not tree:
        return strange_value(rng)
    if isinstance(tree, list):
        return _spoil_list(tree, rng)
    return _spoil_map(tree, rng)


def _spoil_list(tree: list[Any], rng: random.Random) -> Any:
    at = rng.randrange(len(tree))
    match rng.randrange(10):
        case 0:
            return tree[:at] + tree[at + 1 :]
        case 1:
            return tree[:at] + [tree[at]] * rng.choice((2, 2, 65)) + tree[at + 1 :]
        case 2:
            other = rng.randrange(len(tree))
            return [tree[other] if i == at else tree[at] if i == other else part for i, part in enumerate(tree)]
        case _:
            return [spoil_tree(part, rng) if i == at else part for i, part in enumerate(tree)]


def _spoil_map(tree: dict[Any, Any], rng: random.Random) -> Any:
    key = rng.choice(list(tree))
    rest = {k: v for k, v in tree.items() if k != key}
    match rng.randrange(10):
        case 0:
            return rest
        case 1:
            return {**rest, rng.choice(("", "x" * 200, key + "x" if isinstance(key, str) else "k")): tree[key]}
        case 2:
            return Pairs([*tree.items(), (key, strange_value(rng))])
        case 3:
            return {**tree, "unheard of": strange_value(rng)}
        case _:
            return {k: spoil_tree(v, rng) if k == key else v for k, v in tree.items()}


def spoil_packed(data: bytes, rng: random.Random) -> bytes:
    """A message that is still msgpack, mostly, but not the one that was meant."""
    try:
        tree = msgspec.msgpack.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError, RecursionError):
        return spoil(data, rng)
    for _ in range(rng.choice((1, 1, 1, 2))):
        tree = spoil_tree(tree, rng)
    packed = pack(tree, rng, rng.choice((0.0, 0.0, 0.3)))
    return packed + rng.choice((b"", b"", b"", b"\0", b"\xc0"))
