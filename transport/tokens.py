"""Join tokens for scripts, as text: `vrm1-<digest of the cluster's authority>-<secret and checksum>`.

The digest lets a joiner know the cluster before it says anything; the secret lets it in; the checksum tells a typing
error on the spot. Pure: never sockets, clocks or other rooms than errors.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from typing import Final

from transport.errors import PairingError

PREFIX: Final = "vrm1"
DIGEST_BYTES: Final = 32
SECRET_BYTES: Final = 16
TEXT_LIMIT: Final = 256
"""More characters than this are not read at all."""

_TOKEN: Final = re.compile(rf"{PREFIX}-([a-z2-7]{{52}})-([a-z2-7]{{26}})([a-z2-7]{{7}})")


class TokenError(PairingError):
    """The join token was not accepted."""

    hint = "Get a fresh one with 'vramancer invite --token' on the master."


@dataclass(frozen=True, slots=True)
class Token:
    """`authority_digest`: SHA-256 (32 bytes) of the authority's DER certificate. `secret`: 16 random bytes."""

    authority_digest: bytes
    secret: bytes = field(repr=False)

    def __str__(self) -> str:
        body = f"{PREFIX}-{_base32(self.authority_digest)}-{_base32(self.secret)}"
        return body + _checksum(body)


def parse_token(text: str) -> Token:
    """Of what was typed or stood in a file, in any case. Raises TokenError for a typing error, before anything is sent.

    CRC-32 finds every change within 32 neighbouring bits: one wrong character, or two neighbours exchanged, for sure.
    """
    if len(text) > TEXT_LIMIT:
        raise TokenError("That is too long for a join token.")
    found = _TOKEN.fullmatch(text.strip().lower())
    if found is None:
        raise TokenError(
            f"That is no join token: one looks like {PREFIX}-…-…, 91 characters.",
            hint="Copy it again, whole, as 'vramancer invite --token' wrote it.",
        )
    digest, secret, checksum = found.groups()
    if checksum != _checksum(f"{PREFIX}-{digest}-{secret}"):
        raise TokenError("The join token has a typing error.", hint="Copy it again; nothing was sent.")
    return Token(_bytes(digest), _bytes(secret))


def hash_secret(secret: bytes) -> str:
    """What the master keeps of a secret, as hex. It has 128 random bits: no slow hash makes them harder to guess."""
    return hashlib.sha256(b"vramancer token " + secret).hexdigest()


def _checksum(body: str) -> str:
    return _base32(binascii.crc32(body.encode()).to_bytes(4, "big"))


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def _bytes(text: str) -> bytes:
    return base64.b32decode(text.upper() + "=" * (-len(text) % 8))
