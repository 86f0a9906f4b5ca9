"""The files that make up a GGUF model: one, or several that its writer has split it into, found by their names.

Format: gguf-split of llama.cpp names them NAME-00001-of-00003.gguf, counts them in `split.no` and `split.count`, and
leaves all other metadata to the first. Must never read a weight or metadata beyond that.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from vramancer_cli.engine.gguf_file import SPLIT_COUNT, GgufHead, read_head
from vramancer_cli.errors import ModelError
from vramancer_cli.models.folder import one_line

_PART: Final = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII | re.DOTALL)
_SPLIT_NUMBER: Final = "split.no"
_MOST_PARTS: Final = 1000


def read_parts(path: Path) -> tuple[GgufHead, ...]:
    """The heads of all files of the model that `path` is part of, the metadata's first. Raises ModelError."""
    head = read_head(path)
    count = head.metadata.get(SPLIT_COUNT, 1)
    if count in (0, 1):
        return (head,)
    heads = tuple(read_head(part) for part in _paths(path, count))
    for number, part in enumerate(heads):
        if (part.metadata.get(_SPLIT_NUMBER), part.metadata.get(SPLIT_COUNT)) != (number, count):
            raise ModelError(
                f"{one_line(part.path.name)} does not say that it is part {number + 1} of {count}.",
                hint="Download all files of the model again.",
            )
    names = [entry.name for part in heads for entry in part.entries]
    if len(set(names)) != len(names):
        raise ModelError(f"Two parts of {one_line(path.name)} hold a tensor of one name.")
    return heads


def model_name(path: Path) -> str:
    """The file's name without ending, and without the number of its part."""
    found = _PART.fullmatch(path.name)
    return found["name"] if found and found["name"] else path.stem


def _paths(path: Path, count: object) -> list[Path]:
    found = _PART.fullmatch(path.name)
    if found is None or int(found["count"]) != count or not 1 <= int(found["number"]) <= int(found["count"]):
        raise ModelError(
            f"{one_line(path.name)} is one of several files that make up a model, and is not named like one.",
            hint="Give it back its name (NAME-00001-of-00003.gguf), or join the files with llama-gguf-split.",
        )
    if int(found["count"]) > _MOST_PARTS:
        raise ModelError(f"{one_line(path.name)} is said to be one of {found['count']} files.")
    paths = [
        path.with_name(f"{found['name']}-{n:05}-of-{found['count']}.gguf") for n in range(1, int(found["count"]) + 1)
    ]
    missing = next((part for part in paths if not part.is_file()), None)
    if missing is not None:
        raise ModelError(
            f"{one_line(missing.name)} is missing beside {one_line(path.name)}.", hint="Put all files into one folder."
        )
    return paths
