"""What stands for a beginning of tokens, so that two sequences with the same one can be told by a few bytes. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b


def chained_digest(previous: bytes, tokens: Sequence[int]) -> bytes:
    """32 bytes for `tokens` and all before them, whose digest is `previous` (b"" for none).

    A cryptographic hash, because prompts come from strangers: whoever finds two beginnings with one digest would read
    the other's cache.
    """
    return blake2b(previous + array("Q", tokens).tobytes(), digest_size=32).digest()
