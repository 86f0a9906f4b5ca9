"""Weights from a head to a worker, piece by piece: real checkpoints, files and hashes; only the link is in memory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.weight_scene import MemoryLink, WeightScene
from transport.contracts import Received
from transport.errors import LinkClosedError, RemoteProtocolError
from transport.messages import PIECE_BYTES, AskModel, ModelFiles, NotServed, Piece, WeightFileSize
from transport.types import LayerRange
from vramancer_cli.engine import architecture, weights
from vramancer_cli.engine.checkpoint import Checkpoint, open_checkpoint
from vramancer_cli.engine.trace import trace_layers
from vramancer_cli.errors import ModelError
from vramancer_cli.models.weight_files import ByteRange
from vramancer_cli.runtime import weight_copy
from vramancer_cli.runtime.piece_records import PieceKey, PieceRecords
from vramancer_cli.runtime.weight_copy import DiskFullError
from vramancer_cli.runtime.weight_fetch import fetch_heads, fetch_ranges


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files; the embedding alone takes two pieces."""
    return make_checkpoint(tmp_path_factory.mktemp("model"), vocab_size=12_000, shard_size="4MB")


@pytest.fixture
def scene(tmp_path: Path, model: Path) -> WeightScene:
    return WeightScene(tmp_path, model)


def ranges_of(checkpoint: Checkpoint, layers: LayerRange) -> list[ByteRange]:
    trace = trace_layers(checkpoint)
    built = architecture.build(checkpoint, torch.float32, ragged=trace.ragged)
    architecture.keep_layers(built, trace.seams, layers)
    owned = [tensor for group in weights.owned_tensors(built, checkpoint).values() for tensor in group]
    return [ByteRange(tensor.path, tensor.start, tensor.size_bytes) for tensor in owned]


def whole(checkpoint: Checkpoint) -> list[ByteRange]:
    return [ByteRange(t.path, t.start, t.size_bytes) for t in checkpoint.tensors.values()]


def bring(scene: WeightScene, layers: LayerRange | None, link: MemoryLink | None = None) -> MemoryLink:
    """All of the model where no layers are named. Every time as after a start: the copy is opened anew."""
    link = link or scene.link()
    copy = scene.copy()
    fetch_heads(link, copy, scene.ref)
    checkpoint = open_checkpoint(copy.folder)
    fetch_ranges(
        link, copy, ranges_of(checkpoint, layers) if layers else whole(checkpoint), lambda _there, _moved: None
    )
    return link


def bytes_of(scene: WeightScene, layers: LayerRange) -> int:
    return sum(part.size_bytes for part in ranges_of(open_checkpoint(scene.model), layers))


def head_bytes(scene: WeightScene) -> int:
    files = scene.link()
    files.ask(AskModel(scene.digest))
    listing = files.answer().message
    assert isinstance(listing, ModelFiles)
    return listing.config_bytes + sum(file.head_bytes for file in listing.files)


# --- what comes ---------------------------------------------------------------------------------------------------


def test_a_copy_opens_as_the_same_model_and_holds_exactly_what_was_asked_for(scene: WeightScene) -> None:
    link = bring(scene, LayerRange(2, 5))
    assert link.moved_bytes == head_bytes(scene) + bytes_of(scene, LayerRange(2, 5))
    copied, original = open_checkpoint(scene.copy().folder), open_checkpoint(scene.model)
    assert copied.digest == original.digest
    for name, tensor in original.tensors.items():
        here = any(f"layers.{layer}." in name for layer in (2, 3, 4))
        assert copied.tensors[name].same_bytes(tensor) == here, name


def test_the_second_time_nothing_moves_and_other_layers_bring_only_what_is_missing(scene: WeightScene) -> None:
    bring(scene, LayerRange(2, 5))
    assert bring(scene, LayerRange(2, 5)).moved_bytes == 0
    assert bring(scene, LayerRange(3, 7)).moved_bytes == bytes_of(scene, LayerRange(5, 7))


def test_large_tensors_come_in_bounded_pieces(scene: WeightScene) -> None:
    link = bring(scene, None)
    sizes = [ask.size_bytes for ask in link.asked]
    assert max(sizes) == PIECE_BYTES
    assert all(tensor.same_bytes(open_checkpoint(scene.model).tensors[name])
               for name, tensor in open_checkpoint(scene.copy().folder).tensors.items())  # fmt: skip


def test_a_cut_link_loses_nothing_that_had_come(scene: WeightScene) -> None:
    with pytest.raises(LinkClosedError):
        bring(scene, LayerRange(2, 5), scene.link(cut_after=20))
    again = bring(scene, LayerRange(2, 5))
    assert 0 < again.moved_bytes < bytes_of(scene, LayerRange(2, 5))
    assert bring(scene, LayerRange(2, 5)).moved_bytes == 0


# --- what is not what it was ----------------------------------------------------------------------------------------


def some_piece(scene: WeightScene) -> tuple[Path, PieceKey]:
    folder = scene.copy().folder
    records = PieceRecords(folder / "pieces", bytes.fromhex(scene.digest))
    key = max(records._known, key=lambda key: key.size_bytes)
    return folder / f"{key.file:05}.safetensors", key


def test_a_flipped_bit_on_the_disk_is_found_and_only_that_piece_comes_again(scene: WeightScene) -> None:
    bring(scene, LayerRange(2, 5))
    path, key = some_piece(scene)
    data = bytearray(path.read_bytes())
    data[key.start + key.size_bytes // 2] ^= 1
    path.write_bytes(data)
    assert bring(scene, LayerRange(2, 5)).moved_bytes == key.size_bytes
    assert bring(scene, LayerRange(2, 5)).moved_bytes == 0


def test_a_record_that_was_torn_off_counts_for_nothing(scene: WeightScene) -> None:
    bring(scene, LayerRange(2, 5))
    journal = scene.copy().folder / "pieces"
    os.truncate(journal, journal.stat().st_size - 3)
    assert 0 < bring(scene, LayerRange(2, 5)).moved_bytes <= PIECE_BYTES


def test_a_head_whose_weights_have_other_values_in_the_same_shapes_replaces_them(tmp_path: Path, model: Path) -> None:
    """A fine-tuned model has the digest of its origin: only the pieces' hashes tell them apart."""
    tuned = make_checkpoint(tmp_path / "tuned", vocab_size=12_000, shard_size="4MB", seed=1)
    first, second = WeightScene(tmp_path, model), WeightScene(tmp_path, tuned)
    assert first.digest == second.digest
    bring(first, LayerRange(2, 5))
    second.head_shelf = tmp_path / "other-head"
    bring(second, LayerRange(2, 5))
    copied, original = open_checkpoint(second.copy().folder), open_checkpoint(tuned)
    name = "model.layers.3.mlp.up_proj.weight"
    assert copied.tensors[name].same_bytes(original.tensors[name])


def test_a_head_that_says_another_hash_than_it_sends_is_not_believed(scene: WeightScene) -> None:
    link = scene.link()

    def lie(received: Received) -> Received:
        changed = isinstance(received.message, Piece) and len(link.asked) > 12
        return replace(received, message=Piece(bytes(32))) if changed else received

    link.spoil = lie
    with pytest.raises(RemoteProtocolError, match="not what the head said"):
        bring(scene, LayerRange(2, 5), link)


def test_a_file_that_changes_on_the_head_is_served_no_more(tmp_path: Path) -> None:
    scene = WeightScene(tmp_path, make_checkpoint(tmp_path / "model"))
    link = scene.link()
    os.utime(scene.model / "model.safetensors", (1, 1))
    with pytest.raises(ModelError, match="cannot read"):
        bring(scene, LayerRange(2, 5), link)


def test_bytes_that_rot_on_the_head_are_not_handed_out_as_right(tmp_path: Path) -> None:
    scene = WeightScene(tmp_path, make_checkpoint(tmp_path / "model"))
    path = scene.model / "model.safetensors"
    source = scene.source()
    bring(scene, None, MemoryLink(source))
    facts = path.stat()
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    scene.shelf = tmp_path / "another"
    with pytest.raises(ModelError, match="cannot read"):
        bring(scene, None, MemoryLink(source))


# --- what is refused ------------------------------------------------------------------------------------------------


def test_another_model_than_the_heads_is_not_served(scene: WeightScene) -> None:
    scene.ref = replace_digest(scene, "ab" * 32)
    with pytest.raises(ModelError, match="serves another model"):
        bring(scene, None)


def replace_digest(scene: WeightScene, digest: str):
    return type(scene.ref)(scene.ref.name, scene.ref.source, scene.ref.location, digest)


@pytest.mark.parametrize("digest", ["", "../../etc", "AB" * 32, "ab" * 31 + "/."])
def test_a_digest_that_is_none_never_becomes_a_path(scene: WeightScene, digest: str) -> None:
    scene.ref = replace_digest(scene, digest)
    with pytest.raises(ModelError, match="digest"):
        scene.copy()


@pytest.mark.parametrize(
    "files",
    [
        ModelFiles(100, ()),
        ModelFiles(1 << 40, (WeightFileSize(100, 50),)),
        ModelFiles(100, (WeightFileSize(100, 101),)),
        ModelFiles(100, (WeightFileSize(1 << 60, 50),)),
        ModelFiles(100, (WeightFileSize(1 << 30, 1 << 30),)),
    ],
)
def test_files_of_impossible_sizes_are_refused_before_anything_is_made(scene: WeightScene, files: ModelFiles) -> None:
    link = scene.link()
    link.spoil = lambda received: replace(received, message=files)
    with pytest.raises(ModelError, match="impossible sizes"):
        bring(scene, None, link)
    assert not list(scene.copy().folder.glob("*.safetensors"))


def test_an_answer_to_another_question_ends_it(scene: WeightScene) -> None:
    link = scene.link()
    link.spoil = lambda received: replace(received, message=Piece(bytes(32)))
    with pytest.raises(RemoteProtocolError, match="answered AskModel"):
        bring(scene, None, link)


def test_what_the_head_says_in_a_refusal_is_one_bounded_line(scene: WeightScene) -> None:
    link = scene.link()
    link.spoil = lambda received: replace(received, message=NotServed("no\nway\x1b[31m" + "x" * 9999))
    with pytest.raises(ModelError) as refused:
        bring(scene, None, link)
    assert len(str(refused.value)) < 400 and str(refused.value).isprintable()


def test_too_small_a_disk_is_a_sentence_before_anything_moves(
    scene: WeightScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_copy.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1 << 20}))
    link = scene.link()
    with pytest.raises(DiskFullError, match="MiB of weights are missing here"):
        bring(scene, LayerRange(2, 5), link)
    assert link.moved_bytes == 0


@pytest.mark.parametrize(("file", "start", "size"), [(3, 0, 1), (99, 0, 1), (1, 1 << 40, 1), (1, 2**63 - 1, 1)])
def test_nothing_outside_the_models_files_is_served(scene: WeightScene, file: int, start: int, size: int) -> None:
    from transport.messages import AskPiece

    with pytest.raises(RemoteProtocolError, match="outside"):
        scene.link().ask(AskPiece(file, start, size))


def test_the_head_hashes_a_piece_once_also_after_a_restart(scene: WeightScene, monkeypatch: pytest.MonkeyPatch) -> None:
    source = scene.source()
    bring(scene, None, MemoryLink(source))
    source.close()
    again = scene.source()
    reads: list[object] = []
    monkeypatch.setattr(again, "_read", lambda ask: reads.append(ask))
    assert bring(scene, None, MemoryLink(again)).moved_bytes == 0
    assert not reads


def test_the_copy_is_the_users_alone(scene: WeightScene) -> None:
    bring(scene, LayerRange(2, 5))
    folder = scene.copy().folder
    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
