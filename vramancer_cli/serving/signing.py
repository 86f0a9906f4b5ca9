"""Signed requests: the one place that says what is signed and how. docs/api-signing.md is its description.

Used by the server and by our client. Standard library only; `now` and the nonce come in as values.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Final

SCHEME: Final = "VRM-HMAC-SHA256"
WINDOW_S: Final = 300
"""How far a request's time may be from the server's."""

_SENT: Final = re.compile(
    rf"{SCHEME} key=(?P<key>[0-9a-f]{{16}}), ?time=(?P<time>[0-9]{{1,12}}), ?nonce=(?P<nonce>[A-Za-z0-9_-]{{16,64}}), "
    r"?body=(?P<body>[0-9a-f]{64}), ?signature=(?P<signature>[0-9a-f]{64})",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signed request says of itself. `time_s` in whole Unix seconds, `body` SHA-256 of the body, hex."""

    key: str
    time_s: int
    nonce: str
    body: str
    signature: str = ""

    def header(self) -> str:
        """The value of Authorization."""
        return (
            f"{SCHEME} key={self.key}, time={self.time_s}, nonce={self.nonce}, "
            f"body={self.body}, signature={self.signature}"
        )


def is_signed(authorization: str | None) -> bool:
    return (authorization or "").partition(" ")[0].upper() == SCHEME


def parse(authorization: str) -> Signed | None:
    """None for anything that is not exactly as `Signed.header` writes it."""
    found = _SENT.fullmatch(authorization)
    if found is None:
        return None
    return Signed(found["key"], int(found["time"]), found["nonce"], found["body"], found["signature"])


def sign(*, key_id: str, secret: str, method: str, target: str, body: bytes, time_s: int, nonce: str) -> str:
    """The value of Authorization for one request. `target`: path and query as they go over the wire."""
    unsigned = Signed(key_id, time_s, nonce, body_digest(body))
    signature = signature_of(unsigned, secret, method, target)
    return Signed(key_id, time_s, nonce, unsigned.body, signature).header()


def is_valid(signed: Signed, secret: str, method: str, target: str) -> bool:
    """Whether the holder of `secret` signed this; its time, its nonce and its body are still to be looked at."""
    return hmac.compare_digest(signed.signature, signature_of(signed, secret, method, target))


def signature_of(signed: Signed, secret: str, method: str, target: str) -> str:
    path, _, query = target.partition("?")
    lines = (
        SCHEME, method.upper(), path, canonical_query(query), signed.body, str(signed.time_s), signed.nonce
    )  # fmt: skip
    text = "\n".join(lines).encode("utf-8", "surrogateescape")
    return hmac.digest(bytes.fromhex(secret), text, "sha256").hex()


def canonical_query(query: str) -> str:
    """The pairs by their names, which something on the way may have put in another order; nothing is decoded.

    Pairs of one name keep their order, since it can matter.
    """
    return "&".join(sorted(filter(None, query.split("&")), key=lambda pair: pair.partition("=")[0]))


def body_digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
