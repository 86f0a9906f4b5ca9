"""Streams of frames, valid and spoiled, as one end of a link would receive them.

A case is one byte for the end of the link, then the stream. It follows from a seed and its number.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from fuzz.drafts import Draft, hello_frame, lie_in_header, lie_in_table, valid_draft
from fuzz.mutation import splice, spoil, spoil_packed
from transport.connection import ARRIVES, Role, State
from transport.messages import MESSAGES, Goodbye

ROLES: Final = tuple(Role)
STRANGERS: Final = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"VTPDATA\n",
    b"SSH-2.0-x\r\n",
)


@dataclass(frozen=True, slots=True)
class Case:
    role: Role
    stream: bytes
    frames: int = 0

    def to_bytes(self) -> bytes:
        return bytes([ROLES.index(self.role)]) + self.stream

    @classmethod
    def from_bytes(cls, data: bytes) -> Case:
        return cls(ROLES[data[0] % len(ROLES)] if data else Role.CONTROL, data[1:])


def make_case(seed: int, number: int) -> Case:
    rng = random.Random((seed << 40) + number)
    role = rng.choices(ROLES, (5, 1, 4, 3, 2))[0]
    pieces: list[bytes] = []
    if rng.random() < 0.9:
        pieces.append(hello_frame(role.value.partition(" ")[0]))
    allowed = sorted(ARRIVES[role, State.OPEN])
    going_on = [type_id for type_id in allowed if type_id != Goodbye.type_id] or allowed
    pieces += [valid_draft(rng.choice(going_on), rng).pack() for _ in range(rng.choice((0, 0, 1, 2)))]
    pieces += [_spoiled(valid_draft(_some_type(allowed, rng), rng), rng) for _ in range(rng.choice((1, 1, 2, 3)))]
    return Case(role, b"".join(pieces), len(pieces))


def _some_type(allowed: Sequence[int], rng: random.Random) -> int:
    """Seldom a Goodbye: what follows it is all refused for the same reason."""
    kinds = [*allowed, *(type_id for type_id in allowed if type_id != Goodbye.type_id)]
    return rng.choice(kinds) if rng.random() < 0.9 else rng.choice(list(MESSAGES))


def _spoiled(draft: Draft, rng: random.Random) -> bytes:
    """Deep code is reached only by frames whose checksums are right: most mutations repair them."""
    match rng.randrange(16):
        case 0:
            return draft.pack()
        case 1 | 2:
            return spoil(draft.pack(), rng)
        case 3 | 4 | 5:
            return lie_in_header(draft, rng).pack()
        case 6 | 7:
            return replace(draft, meta=spoil(draft.meta, rng)).pack()
        case 8 | 9 | 10 | 11:
            return replace(draft, meta=spoil_packed(draft.meta, rng)).pack()
        case 12 | 13:
            return lie_in_table(draft, rng).pack()
        case 14:
            return splice(draft.pack(), valid_draft(rng.choice(list(MESSAGES)), rng).pack(), rng)
        case _:
            return rng.choice((*STRANGERS, rng.randbytes(rng.randrange(200)), replace(draft, type=999, flags=1).pack()))
