"""Looks for secrets in texts that may hold none: raw, in hex, base32 and base64, whole or a few characters of them.

How few: 6 of a pairing code, of hex and of other text; 8 of base32 and base64, of which 6 are met by chance in ordinary
words about once in a thousand runs. Values that are public (ids, digests) and numbers are taken out of a text first:
they are as random as a secret is.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PUBLIC = "\x00"
_NUMBER = re.compile(r"(?<![0-9A-Za-z])[0-9]{4,}(?:\.[0-9]+)?(?![0-9A-Za-z])")


@dataclass(frozen=True)
class Secret:
    """`letters`: the fewest characters of `value` as text that count as a leak; None where it is no text."""

    what: str
    value: bytes
    letters: int | None = None

    def forms(self) -> Iterator[tuple[str, int]]:
        """Each way to write it, and how much of that is a leak."""
        if self.letters is not None:
            yield self.value.decode(), self.letters
        for text in (self.value.hex(), self.value.hex().upper()):
            yield text, 6
        for start in range(5):  # where it stands in something longer, it is cut into other groups
            text = base64.b32encode(self.value[start:]).decode().rstrip("=")
            yield from ((text, 8), (text.lower(), 8))
        for start in range(3):
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                yield encode(self.value[start:]).decode().rstrip("="), 8


def code(text: str) -> Secret:
    return Secret("pairing code", text.encode(), 6)


def key(what: str, text: str) -> Secret:
    """Without a prefix that is no secret."""
    return Secret(what, text.encode(), 8)


def scrubbed(text: str, public: Iterable[str]) -> str:
    for value in sorted(public, key=len, reverse=True):
        text = text.replace(value, PUBLIC)
    return _NUMBER.sub(PUBLIC, text)


def leaks(text: str, secrets: Iterable[Secret]) -> set[str]:
    """What of `secrets` stands in a scrubbed text: which, and the characters that were found."""
    windows = {length: {text[at : at + length] for at in range(len(text) - length + 1)} for length in (6, 8)}
    found: set[str] = set()
    for secret in secrets:
        for form, length in secret.forms():
            shown = next((form[at : at + length] for at in range(len(form) - length + 1)
                          if form[at : at + length] in windows[length]), None)  # fmt: skip
            if shown is not None:
                found.add(f"{secret.what}: {shown}")
    return found
