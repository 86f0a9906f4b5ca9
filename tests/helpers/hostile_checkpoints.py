"""Model folders that lie, bring code or ask for the impossible: each made from a good one, with what has to be said."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

MARKER = "VRAMANCER_WAS_HERE"
"""The file that every payload would create beside the model folder."""

Spoil = Callable[[Path], None]


class _Payload:
    """Creates the marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._marker}",)


def marker_of(folder: Path) -> Path:
    return folder.parent / MARKER


def payload(folder: Path) -> bytes:
    return pickle.dumps(_Payload(marker_of(folder)))


def code(folder: Path) -> str:
    return f"import pathlib\npathlib.Path({str(marker_of(folder))!r}).touch()\n"


def declares(name: str = "config.json", **changes: Any) -> Spoil:
    """The same folder with other values in one of its configs."""

    def change(folder: Path) -> None:
        path = folder / name
        config = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(config | changes))

    return change


def brings_code(name: str) -> Spoil:
    """`auto_map` in one of the configs, and the code that it names."""

    def change(folder: Path) -> None:
        auto_map = {
            "AutoConfig": "evil.Config",
            "AutoModelForCausalLM": "evil.Model",
            "AutoTokenizer": ["evil.T", None],
        }
        declares(name, auto_map=auto_map)(folder)
        put_code(folder)

    return change


def put_code(folder: Path) -> None:
    for name in (
        "evil.py",
        "modeling_llama.py",
        "configuration_llama.py",
        "tokenization.py",
        "__init__.py",
        "setup.py",
    ):
        (folder / name).write_text(code(folder))


def put_pickles(folder: Path) -> None:
    """Beside the real weights: what other programs would open."""
    for name in ("pytorch_model.bin", "model.pt", "model.pth", "weights.pkl", "tokenizer.pkl", "training_args.bin"):
        (folder / name).write_bytes(payload(folder))
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "pytorch_model.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def only_pickles(*names: str) -> Spoil:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for name in names:
            (folder / name).write_bytes(payload(folder))

    return change


def other_tokenizer(name: str) -> Spoil:
    """The tokenizer as a pickle or a file of another library, under its usual name."""

    def change(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / name).write_bytes(payload(folder))

    return change


def sparse(name: str, size_bytes: int) -> Spoil:
    """A file of that size which takes no room on the disk."""

    def change(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(size_bytes)

    return change


def content(name: str, data: bytes) -> Spoil:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return change


def link(name: str, target: str) -> Spoil:
    """One of the files becomes a link to `target`, which is made first if it lies beside the folder."""

    def change(folder: Path) -> None:
        moved = (folder / target).resolve()
        if not moved.exists():
            (folder / name).rename(moved)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def header(value: Any, data: bytes = b"", *, length: int | None = None) -> Spoil:
    """model.safetensors with this header (JSON, or bytes as they are), this data, and this said of its length."""

    def change(folder: Path) -> None:
        write_header(folder / "model.safetensors", value, data, length=length)

    return change


def write_header(path: Path, value: Any, data: bytes = b"", *, length: int | None = None) -> None:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)


def tensor(dtype: str = "F32", shape: tuple[int, ...] = (2,), offsets: tuple[int, int] = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def many_tensors(count: int) -> bytes:
    one = '"t%07d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return ("{" + ",".join(one % number for number in range(count)) + "}").encode()


LYING_HEADERS: dict[str, tuple[Spoil, str]] = {
    "longer than the file": (header(b"{}", length=10_000), "cut off or not"),
    "longer than a number": (header(b"{}", length=2**63), "cut off or not"),
    "a hundred megabytes": (header(b"{}", length=100_000_001), "cut off or not"),
    "past the end": (header({"w": tensor(offsets=(0, 9))}, bytes(8)), "contradicts"),
    "negative": (header({"w": tensor(offsets=(-8, 0))}, bytes(8)), "contradicts"),
    "backwards": (header({"w": tensor(offsets=(8, 0))}, bytes(8)), "contradicts"),
    "other shape": (header({"w": tensor(shape=(3,))}, bytes(8)), "contradicts"),
    "product overflow": (header({"w": tensor(shape=(2**32, 2**32))}, bytes(8)), "contradicts"),
    "huge and empty": (header({"w": tensor(shape=(0, 2**61, 2**61), offsets=(0, 0))}), "contradicts"),
    "many dimensions": (header({"w": tensor(shape=(1,) * 4000 + (2,))}, bytes(8)), "contradicts"),
    "huge number": (header({"w": tensor(shape=(10**4000,))}, bytes(8)), "contradicts"),
    "overlap": (header({"a": tensor(), "b": tensor(offsets=(4, 12))}, bytes(12)), "contradicts"),
    "twice the same": (header({"a": tensor(), "b": tensor()}, bytes(8)), "contradicts"),
    "gap": (header({"a": tensor(), "b": tensor(offsets=(12, 20))}, bytes(20)), "contradicts"),
    "late start": (header({"a": tensor(offsets=(4, 12))}, bytes(12)), "contradicts"),
    "hidden end": (header({"a": tensor()}, bytes(9)), "goes on after"),
    "one name twice": (
        header(b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[0],'
               b'"data_offsets":[8,8]}}', bytes(8)),
        "twice",
    ),
    "not text": (header(b'{"\xff":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)), "not JSON"),
    "utf-16": (header('{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.encode("utf-16"), bytes(8)), "not JSON"),
    "deep": (header(b'{"w":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "not JSON"),
    "a million tensors": (header(many_tensors(1_000_000)), "more than"),
    "a million values": (header(b'{"w":[' + b"{}," * 12_000_000 + b"{}]}"), "more than"),
    "NaN beside": (header(b'{"__metadata__":{"a":NaN}}'), "NaN"),
    "metadata of numbers": (header({"__metadata__": {"a": 1}}), "contradicts"),
    "metadata of lists": (header({"__metadata__": [1]}), "contradicts"),
    "true for a size": (header(b'{"w":{"dtype":"I8","shape":[true],"data_offsets":[0,1]}}', bytes(1)), "contradicts"),
    "a name to break the line": (header({"w\n\x1b[31merror: x": tensor(offsets=(0, 9))}, bytes(8)), "contradicts"),
}  # fmt: skip
"""What has to be said of each; none may cost memory."""

LYING_CONFIGS: dict[str, tuple[Spoil, str]] = {
    "layers": (declares(num_hidden_layers=10**9), "num_hidden_layers"),
    "some layers": (declares(num_hidden_layers=9_999), "layers"),
    "no layers": (declares(num_hidden_layers=0), "layers"),
    "layers in words": (declares(num_hidden_layers="many"), "config"),
    "layers nested": (declares(text_config={"num_hidden_layers": 10**9}), "num_hidden_layers"),
    "experts": (declares(model_type="mixtral", num_local_experts=10**9), "num_local_experts"),
    "many experts": (declares(model_type="mixtral", num_local_experts=9_999), "experts"),
    "width 0": (declares(hidden_size=0), "built|accept|shape"),
    "negative width": (declares(hidden_size=-64), "built|accept|shape"),
    "width in words": (declares(hidden_size="wide"), "accept"),
    "huge width": (declares(hidden_size=2**40), "shape|built"),
    "no heads": (declares(num_attention_heads=0), "accept|built"),
    "heads": (declares(num_attention_heads=10**9), "num_attention_heads"),
    "vocabulary": (declares(vocab_size=2**50), "shape|built"),
    "negative vocabulary": (declares(vocab_size=-1), "shape|built|accept"),
    "theta nan": (declares(rope_parameters={"rope_type": "default", "rope_theta": float("nan")}), "NaN"),
    "theta infinite": (declares(rope_parameters={"rope_type": "default", "rope_theta": float("inf")}), "rope_theta"),
    "theta 0": (declares(rope_parameters={"rope_type": "default", "rope_theta": 0}), "rope_theta"),
    "context": (declares(max_position_embeddings=2**60), "max_position_embeddings"),
    "context in words": (declares(max_position_embeddings="long"), "accept|how long"),
    "no family": (declares(model_type=None), "which family"),
    "other family": (declares(model_type="../../etc/passwd\n\x1b[31m"), "accept"),
    "quantised": (declares(quantization_config={"quant_method": "bitsandbytes"}), "quantised"),
    "deep": (content("config.json", b'{"model_type": "llama", "a": ' + b"[" * 500 + b"]" * 500 + b"}"), "deep|JSON"),
    "deeper": (content("config.json", b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "JSON"),
    "a list": (content("config.json", b"[]"), "JSON"),
    "a gigabyte": (sparse("config.json", 1 << 30), "larger than"),
    "a bomb": (content("config.json", b'{"a": [' + b"{}," * 3_000_000 + b"{}]}"), "more than"),
    "one key twice": (content("config.json", b'{"model_type": "llama", "model_type": "gpt2"}'), "twice"),
}

INDEXES: dict[str, tuple[Any, str]] = {
    "outside": ({"weight_map": {"w": "../outside.safetensors"}}, "inside the folder"),
    "absolute": ({"weight_map": {"w": "/tmp/outside.safetensors"}}, "inside the folder"),
    "pickle": ({"weight_map": {"w": "pytorch_model.bin"}}, "inside the folder"),
    "backslash": ({"weight_map": {"w": "..\\outside.safetensors"}}, "inside the folder"),
    "missing": ({"weight_map": {"w": "gone.safetensors"}}, "missing"),
    "too many": ({"weight_map": {f"w{n}": f"{n}.safetensors" for n in range(10_001)}}, "more than"),
    "no map": ({"weight_map": ["w"]}, "weight_map"),
}

BIG_FILES: dict[str, tuple[Spoil, str]] = {
    "tokenizer": (sparse("tokenizer.json", 1 << 30), "larger than"),
    "tokenizer config": (sparse("tokenizer_config.json", 1 << 30), "larger than"),
    "generation config": (sparse("generation_config.json", 1 << 30), "larger than"),
    "template": (sparse("chat_template.jinja", 1 << 30), "larger than"),
    "special tokens": (sparse("special_tokens_map.json", 1 << 30), "larger than"),
    "vocabulary": (sparse("vocab.json", 1 << 30), "larger than"),
    "sentencepiece": (sparse("tokenizer.model", 1 << 30), "larger than"),
    "endless": (link("chat_template.jinja", "/dev/zero"), "leads out"),
}
