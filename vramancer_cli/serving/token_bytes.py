"""The bytes that a token stands for, alone: what `decode` cannot say of half a character or of a leading space.

Read off the tokenizer's own decoder, as tokenizer.json declares it. Never the place to turn an answer into text: what
a token's text is depends on its neighbours (serving/text).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

Decoder = Mapping[str, Any]

_BYTE_TOKEN: Final = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """`pieces`: token id -> its entry in the vocabulary, None for an id without one. `decoder`: the tokenizer's, as
    its JSON state; None: entries are text. `special`: ids of tokens that are no text."""

    def __init__(
        self, pieces: Callable[[int], str | None], decoder: bytes | None, special: frozenset[int], added: frozenset[int]
    ) -> None:
        self._pieces = pieces
        self._special = special
        self._added = added
        steps = _steps(msgspec.json.decode(decoder)) if decoder else []
        self._byte_level = any(step["type"] == "ByteLevel" for step in steps)
        self._byte_fallback = any(step["type"] == "ByteFallback" for step in steps)
        self._replaced = [replaced for step in steps if (replaced := _replaced(step))]

    def of(self, token_id: int) -> bytes:
        """Empty for an id that no vocabulary has: some models have more logits than tokens."""
        piece = self._pieces(token_id)
        if piece is None:
            return b""
        if token_id in self._added:
            return piece.encode()
        if self._byte_level:
            return b"".join(_BYTES.get(character, character.encode()) for character in piece)
        if self._byte_fallback and (byte := _BYTE_TOKEN.fullmatch(piece)):
            return bytes.fromhex(byte[1])
        for old, new in self._replaced:
            piece = piece.replace(old, new)
        return piece.encode()

    def is_text(self, token_id: int) -> bool:
        return token_id not in self._special


def _steps(decoder: Decoder) -> list[Decoder]:
    return [step for one in decoder["decoders"] for step in _steps(one)] if "decoders" in decoder else [decoder]


def _replaced(step: Decoder) -> tuple[str, str] | None:
    """What a step of the decoder writes instead of what, wherever it stands."""
    if step["type"] == "Metaspace":
        return step["replacement"], " "
    if step["type"] == "Replace" and "String" in step["pattern"]:
        return step["pattern"]["String"], step["content"]
    return None


def _byte_characters() -> dict[str, bytes]:
    """The characters that byte-level vocabularies write bytes with (Radford et al., GPT-2, 2019).

    Printable Latin-1 characters stand for themselves, the others for the characters from U+0100 on.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): bytes([byte]) for byte in printable}
    return characters | {chr(256 + place): bytes([byte]) for place, byte in enumerate(others)}


_BYTES: Final = _byte_characters()
