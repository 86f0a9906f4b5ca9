from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers import hostile_checkpoints as hostile
from tests.helpers.checkpoints import make_checkpoint
from vramancer_cli.engine import checkpoint
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.errors import ModelError


def write(folder: Path, header: Any, data: bytes = b"", *, length: int | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    prefix = struct.pack("<Q", len(raw) if length is None else length)
    (folder / "model.safetensors").write_bytes(prefix + raw + data)
    return folder


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def test_every_tensor_reads_as_safetensors_reads_it(llama: Path):
    opened = open_checkpoint(llama)
    expected = load_file(llama / "model.safetensors")
    assert opened.tensors.keys() == expected.keys()
    assert all(torch.equal(stored.read(), expected[name]) for name, stored in opened.tensors.items())


def test_all_stored_dtypes_and_shapes_are_read(tmp_path: Path):
    stored = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "half": torch.randn(2, 3).half(),
        "brain": torch.randn(2, 3).bfloat16(),
        "int": torch.arange(4),
        "bool": torch.tensor([True, False]),
    }
    write(tmp_path, {})
    save_file(stored, tmp_path / "model.safetensors")
    opened = open_checkpoint(tmp_path)
    for name, tensor in stored.items():
        assert torch.equal(opened.tensors[name].read(), tensor)
        assert torch.equal(opened.tensors[name][...], tensor)


def test_the_digest_is_of_config_and_headers_in_file_name_order(tmp_path: Path):
    folder = make_checkpoint(tmp_path / "m", num_hidden_layers=2, shard_size="100KB")
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    for path in files:
        data = path.read_bytes()
        digest.update(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    assert open_checkpoint(folder).digest == digest.hexdigest()


def test_other_headers_or_another_config_give_another_digest(tmp_path: Path):
    one = open_checkpoint(write(tmp_path / "a", entry(), bytes(8))).digest
    assert open_checkpoint(write(tmp_path / "b", entry(shape=(1, 2)), bytes(8))).digest != one
    (tmp_path / "a" / "config.json").write_text('{"model_type": "llama"}')
    assert open_checkpoint(tmp_path / "a").digest != one


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (entry(offsets=(0, 9)), bytes(9)),
        (entry(offsets=(0, 8)), bytes(7)),
        (entry(offsets=(8, 0)), bytes(8)),
        (entry(offsets=(-8, 0)), bytes(8)),
        (entry(offsets=(0, 8, 16)), bytes(16)),
        (entry(shape=(3,)), bytes(8)),
        (entry(shape=(-1, -2)), bytes(8)),
        (entry(shape=(2.0,)), bytes(8)),
        (entry(shape=(1 << 62, 1 << 62)), bytes(8)),
        (entry(dtype=5), bytes(8)),
        ({"w": None}, b""),
        ({"w": {}}, b""),
    ],
)
def test_a_header_that_contradicts_its_file_is_refused(tmp_path: Path, header: Any, data: bytes):
    with pytest.raises(ModelError, match="'w'"):
        open_checkpoint(write(tmp_path, header, data))


def test_a_header_longer_than_its_file_or_the_limit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for length in (1 << 63, 10_000, checkpoint.HEADER_MAX_BYTES + 1):
        with pytest.raises(ModelError, match="cut off"):
            open_checkpoint(write(tmp_path, b"{}", length=length))
    monkeypatch.setattr(checkpoint, "HEADER_MAX_BYTES", 1)
    with pytest.raises(ModelError, match="cut off"):
        open_checkpoint(write(tmp_path, b"{}"))


@pytest.mark.parametrize("content", [b"", b"\x01\x02", b"\xff" * 8])
def test_a_file_that_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes):
    write(tmp_path, {})
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="cut off or not"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("header", [b"[]", b"nonsense", b"\xff\xfe", b"[" * 100_000])
def test_a_header_that_is_no_json_object_is_refused(tmp_path: Path, header: bytes):
    with pytest.raises(ModelError, match="header"):
        open_checkpoint(write(tmp_path, header))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_that_would_be_waited_for_forever_is_no_weight_file(tmp_path: Path):
    write(tmp_path, entry(), bytes(8))
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"no \.safetensors"):
        open_checkpoint(tmp_path)


def test_a_dtype_that_torch_cannot_hold_here_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match="F8_E4M3"):
        open_checkpoint(write(tmp_path, entry(dtype="F8_E4M3", shape=(8,)), bytes(8)))


def test_a_checkpoint_cut_off_by_a_download_is_refused(llama: Path, tmp_path: Path):
    folder = Path(shutil.copytree(llama, tmp_path / "cut"))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ModelError, match="cut off"):
        open_checkpoint(folder)


def test_a_file_that_shrinks_while_it_is_open_is_an_error_and_not_a_crash(tmp_path: Path):
    opened = open_checkpoint(write(tmp_path, entry(), bytes(8)))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="shorter"):
        opened.tensors["w"].read()


def test_missing_parts_are_named(tmp_path: Path):
    with pytest.raises(ModelError, match="no folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"no \.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"only as pytorch_model\.bin") as refused:
        open_checkpoint(tmp_path)
    assert ".safetensors" in refused.value.hint


@pytest.mark.parametrize("kind", hostile.LYING_HEADERS)
def test_a_header_that_lies_is_refused(tmp_path: Path, kind: str):
    spoil, said = hostile.LYING_HEADERS[kind]
    (tmp_path / "config.json").write_text("{}")
    spoil(tmp_path)
    with pytest.raises(ModelError, match=said) as refused:
        open_checkpoint(tmp_path)
    assert "\n" not in str(refused.value) and "\x1b" not in str(refused.value) and len(str(refused.value)) < 700


LIMITED = """
import resource, sys
from pathlib import Path
from vramancer_cli.engine.checkpoint import open_checkpoint
from vramancer_cli.errors import ModelError
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (256 << 20),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for folder in sorted(Path(sys.argv[1]).iterdir()):
    try:
        open_checkpoint(folder)
    except ModelError:
        print("refused")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_no_header_that_lies_costs_memory(tmp_path: Path):
    """All of them in one process that may grow by 256 MiB and compute for a minute."""
    for number, (spoil, _) in enumerate(hostile.LYING_HEADERS.values()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        spoil(folder)
    ran = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.split() == ["refused"] * len(hostile.LYING_HEADERS)


@pytest.mark.parametrize("kind", hostile.INDEXES)
def test_an_index_that_lies_is_refused(tmp_path: Path, kind: str):
    index, said = hostile.INDEXES[kind]
    (tmp_path / "m").mkdir()
    write(tmp_path / "m", entry(), bytes(8))
    shutil.copy(tmp_path / "m" / "model.safetensors", tmp_path / "outside.safetensors")
    (tmp_path / "m" / checkpoint.INDEX_NAME).write_text(json.dumps(index))
    with pytest.raises(ModelError, match=said):
        open_checkpoint(tmp_path / "m")


@pytest.mark.parametrize("indexed", [False, True])
def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path, indexed: bool):
    write(tmp_path / "m", entry(), bytes(8))
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (tmp_path / "m" / "model.safetensors").symlink_to("../outside.safetensors")
    if indexed:
        (tmp_path / "m" / checkpoint.INDEX_NAME).write_text('{"weight_map": {"w": "model.safetensors"}}')
    with pytest.raises(ModelError, match="leads out"):
        open_checkpoint(tmp_path / "m")


def test_more_tensors_than_any_model_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "MAX_TENSORS", 2)
    write(tmp_path, {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(3)})
    with pytest.raises(ModelError, match="more than 2 tensors"):
        open_checkpoint(tmp_path)


def test_pickles_beside_the_weights_are_never_opened(llama: Path, tmp_path: Path):
    folder = Path(shutil.copytree(llama, tmp_path / "both"))
    hostile.put_pickles(folder)
    hostile.put_code(folder)
    opened = open_checkpoint(folder)
    assert {stored.path.name for stored in opened.tensors.values()} == {"model.safetensors"}
    assert not hostile.marker_of(folder).exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.pkl", "model.ckpt"])
def test_a_folder_with_pickled_weights_only_is_refused(llama: Path, tmp_path: Path, name: str):
    folder = Path(shutil.copytree(llama, tmp_path / "pickled"))
    hostile.only_pickles(name)(folder)
    with pytest.raises(ModelError, match=f"only as {name}"):
        open_checkpoint(folder)
    assert not hostile.marker_of(folder).exists()


@pytest.mark.parametrize("config", ['{"auto_map": {}}', '{"text_config": {"auto_map": {"AutoModel": "x.Y"}}}'])
def test_a_model_that_brings_code_is_refused(tmp_path: Path, config: str):
    write(tmp_path, entry(), bytes(8))
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match="its own Python code"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("config", ["", "[]", "{"])
def test_a_broken_config_is_refused(tmp_path: Path, config: str):
    write(tmp_path, entry(), bytes(8))
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=r"config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "c:x.safetensors", "weights.bin"]
)
def test_an_index_may_not_lead_out_of_the_folder(tmp_path: Path, name: str):
    write(tmp_path / "m", entry(), bytes(8))
    shutil.copy(tmp_path / "m" / "model.safetensors", tmp_path / "outside.safetensors")
    (tmp_path / "m" / checkpoint.INDEX_NAME).write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ModelError, match="inside the folder"):
        open_checkpoint(tmp_path / "m")


def test_an_index_without_a_map_or_with_a_missing_file_is_refused(tmp_path: Path):
    write(tmp_path, entry(), bytes(8))
    index = tmp_path / checkpoint.INDEX_NAME
    for wrong in ({}, {"weight_map": []}, {"weight_map": {"w": 1}}):
        index.write_text(json.dumps(wrong))
        with pytest.raises(ModelError, match="weight_map"):
            open_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"w": "gone.safetensors"}}))
    with pytest.raises(ModelError, match=r"gone\.safetensors is missing"):
        open_checkpoint(tmp_path)


def test_one_tensor_in_two_files_is_refused(tmp_path: Path):
    write(tmp_path, entry(), bytes(8))
    (tmp_path / "model.safetensors").rename(tmp_path / "a.safetensors")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    with pytest.raises(ModelError, match="another file holds too"):
        open_checkpoint(tmp_path)


def test_beside_the_single_file_others_are_the_same_weights_in_another_form(tmp_path: Path):
    write(tmp_path, entry(), bytes(8))
    shutil.copy(tmp_path / "model.safetensors", tmp_path / "consolidated.safetensors")
    assert {tensor.path.name for tensor in open_checkpoint(tmp_path).tensors.values()} == {"model.safetensors"}


def test_same_bytes_tells_equal_from_different(tmp_path: Path):
    write(tmp_path, {})
    tensors = {"a": torch.ones(4), "b": torch.ones(4), "c": torch.zeros(4), "d": torch.ones(2, 2)}
    save_file(tensors, tmp_path / "model.safetensors")
    stored = open_checkpoint(tmp_path).tensors
    assert stored["a"].same_bytes(stored["b"])
    assert not stored["a"].same_bytes(stored["c"])
    assert not stored["a"].same_bytes(stored["d"])
