"""A model folder before anything in it is opened: which of its files are read at all, how large they may be, and JSON.

A folder is a stranger's. Looks at names and sizes, and reads small JSON files. Never torch, transformers, sockets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, cast

from vramancer_cli.errors import ModelError

SMALL_MAX_BYTES: Final = 10_000_000
"""config.json and its like; the index of a model in several files is the largest in practice, at some 10 MB."""
VOCABULARY_MAX_BYTES: Final = 64_000_000
"""tokenizer.json; the largest in practice are some 35 MB."""
JSON_MAX_VALUES: Final = 1_000_000
"""Counted by the signs that separate values, before any is made: a value of two characters can take a hundred bytes."""

TOKENIZER_NAME: Final = "tokenizer.json"
CODE_CONFIGS: Final = ("config.json", "tokenizer_config.json", "generation_config.json", "processor_config.json")
_READ_SUFFIXES: Final = (".json", ".jinja", ".txt", ".model", ".tiktoken")
_VOCABULARIES: Final = (TOKENIZER_NAME, "vocab.json", "vocab.txt", "merges.txt")
_VOCABULARY_SUFFIXES: Final = (".model", ".tiktoken")
_TEMPLATES_FOLDER: Final = "additional_chat_templates"
_OTHER_TOKENIZERS: Final = (
    "*.model",
    "*.tiktoken",
    "vocab.*",
    "merges.txt",
    "tokenizer*.p*kl*",
    "tokenizer*.bin",
    "*.pkl",
)
_SHOWN_CHARACTERS: Final = 300


def check_folder(folder: Path) -> None:
    """Raises ModelError for a folder without config.json, with files too large to read, or that brings code."""
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder}.")
    if not (folder / "config.json").is_file():
        hint = "Give --model the .gguf file itself." if any(folder.glob("*.gguf")) else ""
        raise ModelError(f"No model in '{folder}': it has no config.json.", hint=hint)
    for path in (*folder.iterdir(), *(folder / _TEMPLATES_FOLDER).glob("*")):
        if path.suffix in _READ_SUFFIXES and path.exists():
            _check_small(folder, path)
    for name in CODE_CONFIGS:
        if (folder / name).is_file():
            refuse_code(read_json(folder / name), name)


def check_tokenizer(folder: Path) -> None:
    """Raises ModelError where the tokenizer is not tokenizer.json, the one form that is read."""
    if (folder / TOKENIZER_NAME).is_file():
        return
    others = sorted({path.name for pattern in _OTHER_TOKENIZERS for path in folder.glob(pattern)})
    found = f", only {one_line(others[0])}, which VRAMancer does not open" if others else ""
    raise ModelError(
        f"{one_line(folder.name)} has no {TOKENIZER_NAME}{found}: its tokenizer cannot be read.",
        hint=f"Use a version of the model with {TOKENIZER_NAME}.",
    )


def read_small(path: Path) -> bytes:
    """A whole small file. Raises ModelError for one that is too large."""
    return _read(path, SMALL_MAX_BYTES)


def read_json(path: Path) -> dict[str, Any]:
    """A small file that holds a JSON object. Raises ModelError."""
    return json_object(read_small(path), path.name)


def json_object(data: bytes, name: str) -> dict[str, Any]:
    """Strict JSON: UTF-8, no key twice in an object, no NaN, not too many values. Raises ModelError naming `name`."""
    if sum(map(data.count, (b",", b"[", b"{"))) > JSON_MAX_VALUES:
        raise ModelError(f"{name} holds more than {JSON_MAX_VALUES} values.")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_without_doubles, parse_constant=_number)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{name} is not JSON: {one_line(error)}.") from error
    if not isinstance(value, dict):
        raise ModelError(f"{name} does not hold a JSON object.")
    return cast("dict[str, Any]", value)


def refuse_code(declared: dict[str, Any], name: str) -> None:
    """Raises ModelError where a config names Python code of the model's own."""
    for part in (declared, *declared.values()):
        if isinstance(part, dict) and "auto_map" in part:
            raise ModelError(
                f"The model brings its own Python code (auto_map in {name}), which VRAMancer never runs.",
                hint="Use a version of the model whose family transformers knows by itself.",
            )


def refuse_outside(folder: Path, path: Path) -> None:
    """Raises ModelError where a link leads out of the folder, but for the hub's cache, which is made of such links."""
    root = folder.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    if not any(path.resolve().is_relative_to(allowed) for allowed in roots):
        raise ModelError(
            f"{one_line(path.name)} is a link that leads out of the model's folder.",
            hint="Give the folder that the files are really in, or copy them.",
        )


def one_line(value: object) -> str:
    """A stranger's text as part of a sentence: one line, printable, of bounded length, without a full stop."""
    text = " ".join(str(value)[: 10 * _SHOWN_CHARACTERS].split())
    text = "".join(letter if letter.isprintable() else "?" for letter in text[:_SHOWN_CHARACTERS])
    return text.rstrip(".")


def _check_small(folder: Path, path: Path) -> None:
    refuse_outside(folder, path)
    vocabulary = path.name in _VOCABULARIES or path.suffix in _VOCABULARY_SUFFIXES
    _check_size(path, VOCABULARY_MAX_BYTES if vocabulary else SMALL_MAX_BYTES)


def _check_size(path: Path, most_bytes: int) -> None:
    if not path.is_file():
        raise ModelError(f"{one_line(path.name)} is not a file.")
    if path.stat().st_size > most_bytes:
        raise ModelError(f"{one_line(path.name)} is larger than {most_bytes} bytes.")


def _read(path: Path, most_bytes: int) -> bytes:
    _check_size(path, most_bytes)
    with path.open("rb") as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ModelError(f"{one_line(path.name)} is larger than {most_bytes} bytes.")
    return data


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object holds one key twice")
    return found


def _number(name: str) -> float:
    if name == "NaN":
        raise ValueError("it holds NaN")
    return float(name)
