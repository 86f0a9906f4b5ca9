"""Which model a person means: the built-in one, a folder, a GGUF file, or a name on the hub.

Pure but for one look at whether a folder exists; nothing is opened here. Never torch, transformers, sockets.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from transport.types import ModelSource
from vramancer_cli.errors import ModelError

BUILTIN_NAME: Final = "vramancer-guide"
"""The model that comes with the program and needs no download."""

_HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[A-Za-z0-9][\w.-]{0,127})?", re.ASCII)
"""With the revision, if any: a branch, a tag or a commit."""
_DRIVE: Final = re.compile(r"[A-Za-z]:")


def builtin_folder() -> Path:
    """Where the built-in checkpoint lies in this installation."""
    return Path(__file__).parent / "guide"


def names_gguf(model: str | None) -> bool:
    """Whether `--model` is a GGUF file: it becomes a folder before anything else is done with it."""
    return model is not None and model.lower().endswith(".gguf") and not Path(model).is_dir()


def classify(model: str | None) -> tuple[ModelSource, str]:
    """`--model` as given: its source, and its location (a name, or a folder as typed).

    An existing folder wins over a hub name of the same spelling. Raises ModelError when it can be neither.
    """
    if model is None or model == BUILTIN_NAME:
        return "builtin", BUILTIN_NAME
    if model and (_looks_like_path(model) or Path(model).is_dir()):
        return "folder", model
    if _HUB_NAME.fullmatch(model):
        return "hub", model
    raise ModelError(
        f"'{model}' is neither a folder nor the name of a model on the hub.",
        hint=f"Give a folder, a .gguf file, 'org/name' or 'org/name@revision'; without --model it is '{BUILTIN_NAME}'.",
    )


def _looks_like_path(model: str) -> bool:
    starts = model.startswith((".", "/", "~")) or _DRIVE.match(model) is not None
    return starts or "\\" in model or model.count("/") > 1 or model.endswith("/")
