"""The files that a model's weights lie in: how they are told apart and listed, and byte ranges of them, as values.

Reads an index or a file's first bytes, never weights. Never torch, transformers, sockets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from vramancer_cli.errors import ModelError
from vramancer_cli.models.folder import one_line, read_json

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"
MAX_FILES: Final = 10_000
GGUF_MAGIC: Final = b"GGUF"
GGUF_NAME: Final = "gguf.json"
"""In a folder made of GGUF files: where each lies, and the SHA-256 of its head. So a stranger's folder cannot make us
read a file that he does not know."""
USE_SAFETENSORS: Final = "Use a version of the model with .safetensors files."
_PICKLE_SUFFIXES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")


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


def is_gguf(path: Path) -> bool:
    """Whether the file begins as GGUF, whatever its name is. (A safetensors header would be 1.1 GB long.)"""
    with path.open("rb") as file:
        return file.read(len(GGUF_MAGIC)) == GGUF_MAGIC


def indexed_names(index: Path) -> list[str]:
    """The files that an index names, sorted; whoever asks holds them against what there is. Raises ModelError."""
    weight_map = read_json(index).get("weight_map")
    found: Iterable[Any] = cast("dict[str, Any]", weight_map).values() if isinstance(weight_map, dict) else (None,)
    if not all(isinstance(name, str) for name in found):
        raise ModelError(f"{index.name} has no proper weight_map.")
    names: list[str] = sorted(set(found))
    if len(names) > MAX_FILES:
        raise ModelError(f"{index.name} names more than {MAX_FILES} files.")
    return names


def no_weights(model: str, names: Iterable[str]) -> ModelError:
    """What to raise for a model whose files, `names`, are none that can be read."""
    pickled = sorted(name for name in names if name.endswith(_PICKLE_SUFFIXES))
    if not pickled:
        return ModelError(f"{model} has no .safetensors file.")
    sentence = f"{model} has its weights only as {one_line(pickled[0])}, a format that can run code when it is opened."
    return ModelError(sentence, hint=USE_SAFETENSORS)
