"""A checkpoint folder: config.json and the headers of its weight files, checked; a table of tensors to be read later.

A weight file is safetensors, or GGUF where its first bytes say so; a folder made of a GGUF file (`gguf_folder`) names
it in gguf.json. Must never import transformers.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON header, data).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import torch

from vramancer_cli.engine.stored_tensor import StoredTensor
from vramancer_cli.errors import ModelError
from vramancer_cli.models import folder as model_folder
from vramancer_cli.models.folder import one_line
from vramancer_cli.models.weight_files import (
    GGUF_NAME,
    INDEX_NAME,
    MAX_FILES,
    SINGLE_NAME,
    WeightFile,
    indexed_names,
    is_gguf,
    no_weights,
)

if TYPE_CHECKING:
    from vramancer_cli.engine.gguf_file import GgufHead

HEADER_MAX_BYTES: Final = 100_000_000
MAX_TENSORS: Final = 500_000
"""In all files together; the largest models have some hundred thousand."""
_MAX_DIMENSIONS: Final = 16
_MAX_ELEMENTS: Final = 2**60
GGUF_NAMES: Final = "gguf_names"
"""In config.json: name in the GGUF file -> name in transformers."""

_STORED_DTYPES: Final = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder whose headers have been checked. `digest` as ModelRef says; `config` is config.json as read."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    digest: str


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read config and headers, no weights. Raises ModelError with a sentence for whoever chose the folder."""
    config_bytes = _read_config(folder)
    config = model_folder.json_object(config_bytes, "config.json")
    model_folder.refuse_code(config, "config.json")
    digest = hashlib.sha256(config_bytes)
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        header_bytes, found = _gguf_tensors(path, config) if is_gguf(path) else _safetensors(path)
        digest.update(header_bytes)
        for tensor in found:
            if tensors.setdefault(tensor.name, tensor) is not tensor:
                raise ModelError(f"{path.name} holds '{one_line(tensor.name)}', which another file holds too.")
        if len(tensors) > MAX_TENSORS:
            raise ModelError(f"{one_line(folder.name)} holds more than {MAX_TENSORS} tensors.")
    return Checkpoint(folder, config, tensors, digest.hexdigest())


def measured_files(folder: Path) -> tuple[WeightFile, ...]:
    """The weight files in the order in which the digest takes their headers. Raises ModelError."""
    return tuple(WeightFile(path, path.stat().st_size, _head_bytes(path)) for path in weight_files(folder))


def weight_files(folder: Path) -> list[Path]:
    """The files that make up the model: the GGUF files that the folder was made of; else .safetensors files by name.

    Of these, those that the index lists; without one, the single file; without either, all in the folder.
    """
    if (folder / GGUF_NAME).is_file():
        return _pointed_at(folder / GGUF_NAME)
    index, single = folder / INDEX_NAME, folder / SINGLE_NAME
    paths = [_inside(folder, name) for name in indexed_names(index)] if index.is_file() else _files_in(folder)
    if single in paths and not index.is_file():  # others beside it are the same weights in another form
        paths = [single]
    if not paths:
        raise no_weights(one_line(folder.name), [path.name for path in folder.iterdir()])
    return paths


def _pointed_at(pointer: Path) -> list[Path]:
    files = model_folder.read_json(pointer).get("files")
    if not isinstance(files, list) or not 1 <= len(files) <= MAX_FILES:
        raise _no_pointer(pointer)
    return [_gguf_file(pointer, file) for file in files]


def _gguf_file(pointer: Path, file: Any) -> Path:
    match file:
        case {"path": str(named), "head_sha256": str(sha256)}:
            path = Path(named)
        case _:
            raise _no_pointer(pointer)
    if not path.is_file():
        raise ModelError(f"The GGUF file is not at {one_line(path)} any more.", hint="Give --model its place now.")
    if not is_gguf(path) or hashlib.sha256(_gguf_head(path).head).hexdigest() != sha256:
        raise ModelError(f"{one_line(path.name)} is not the file any more that it was.", hint="Start with it again.")
    return path


def _no_pointer(pointer: Path) -> ModelError:
    return ModelError(f"{pointer.name} does not say where the GGUF file is.")


def _files_in(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    for path in found:
        model_folder.refuse_outside(folder, path)
    return found


def _read_config(folder: Path) -> bytes:
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder}.")
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} has no config.json.")
    return model_folder.read_small(path)


def _inside(folder: Path, name: str) -> Path:
    """Names are judged as text before anything is touched by that name, and links by where they lead."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or pure.suffix != ".safetensors":
        raise ModelError(f"{INDEX_NAME} names '{one_line(name)}', which is not a .safetensors file inside the folder.")
    path = folder / pure
    if not path.is_file():
        sentence = f"{one_line(name)} is missing in {one_line(folder.name)}."
        raise ModelError(sentence, hint="Download the model again.")
    model_folder.refuse_outside(folder, path)
    return path


def _head_bytes(path: Path) -> int:
    return len(_gguf_head(path).head) if is_gguf(path) else 8 + len(_read_header(path))


def _gguf_head(path: Path) -> GgufHead:
    from vramancer_cli.engine.gguf_file import read_head  # only where there is GGUF: its library takes a while to load

    return read_head(path)


def _gguf_tensors(path: Path, config: dict[str, Any]) -> tuple[bytes, Iterator[StoredTensor]]:
    names = config.get(GGUF_NAMES)
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelError(
            f"{one_line(path.name)} is a GGUF file inside a model's folder.", hint="Give --model the .gguf file itself."
        )
    from vramancer_cli.engine.gguf_tensor import tensors_in  # as above

    head = _gguf_head(path)
    return head.head, tensors_in(head, config, names)


def _safetensors(path: Path) -> tuple[bytes, list[StoredTensor]]:
    header_bytes = _read_header(path)
    return header_bytes, _parse_header(path, header_bytes)


def _read_header(path: Path) -> bytes:
    """The JSON header's bytes; its length is checked before anything is allocated for it."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(HEADER_MAX_BYTES, file_bytes - 8):
            raise ModelError(f"{path.name} is cut off or not a safetensors file.", hint="Download the model again.")
        return file.read(length)


def _parse_header(path: Path, header_bytes: bytes) -> list[StoredTensor]:
    header = model_folder.json_object(header_bytes, f"The header of {path.name}")
    _check_metadata(path, header.pop("__metadata__", {}))
    data_start = 8 + len(header_bytes)
    data_bytes = path.stat().st_size - data_start
    tensors = [_stored_tensor(path, name, entry, data_start, data_bytes) for name, entry in header.items()]
    _refuse_gaps(path, tensors, data_start, data_start + data_bytes)
    return tensors


def _check_metadata(path: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _lying(path, "__metadata__")


def _refuse_gaps(path: Path, tensors: Iterable[StoredTensor], start: int, end: int) -> None:
    """The format leaves no byte unnamed and none named twice: what hides in a file is not a model."""
    at = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.size_bytes)):
        if tensor.start != at:
            raise _lying(path, tensor.name)
        at += tensor.size_bytes
    if at != end:
        raise ModelError(f"{path.name} goes on after its last tensor: it is damaged.", hint="Download the model again.")


def _stored_tensor(path: Path, name: str, entry: Any, data_start: int, data_bytes: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype_name), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise _lying(path, name)
    dtype = _STORED_DTYPES.get(dtype_name)
    if dtype is None:
        sentence = f"'{one_line(name)}' in {path.name} is stored as {one_line(dtype_name)}"
        raise ModelError(f"{sentence}, which VRAMancer cannot read yet.")
    if not _is_shape(shape):
        raise _lying(path, name)
    if not 0 <= begin <= end <= data_bytes or math.prod(shape) * dtype.itemsize != end - begin:
        raise _lying(path, name)
    return StoredTensor(name, path, dtype, tuple(shape), data_start + begin, end - begin)


def _is_shape(shape: list[Any]) -> bool:
    """Whether torch can hold such a shape: it multiplies strides also where there are no elements."""
    if len(shape) > _MAX_DIMENSIONS or not all(type(size) is int and size >= 0 for size in shape):
        return False
    return 0 not in shape or math.prod(size for size in shape if size) <= _MAX_ELEMENTS


def _lying(path: Path, name: str) -> ModelError:
    return ModelError(
        f"The header of {path.name} contradicts the file at '{one_line(name)}': it is cut off or damaged.",
        hint="Download the model again.",
    )
