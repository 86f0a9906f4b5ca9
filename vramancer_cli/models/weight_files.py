"""The files that a model's weights lie in, and byte ranges of them, as values. Pure; nothing is opened here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A safetensors file. `head_bytes`: its beginning, that is the length field and the JSON header."""

    path: Path
    size_bytes: int
    head_bytes: int


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`size_bytes` of a file from `start` on: one stored tensor."""

    path: Path
    start: int
    size_bytes: int
