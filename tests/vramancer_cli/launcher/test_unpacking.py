from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from tests.helpers.tiny_runtime import TinyRuntime, tiny_runtime
from vramancer_cli.launcher import unpacking
from vramancer_cli.launcher.bundle import Payload
from vramancer_cli.launcher.payload import MANIFEST_NAME, BrokenPayloadError, Manifest, Packed
from vramancer_cli.launcher.unpacking import CacheWriteError, NoRoomError, unpack


@pytest.fixture
def tiny(tmp_path: Path) -> TinyRuntime:
    (tmp_path / "made").mkdir()
    return tiny_runtime(tmp_path / "made")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def made_by(
    members: Iterable[tuple[tarfile.TarInfo, bytes]], folder: Path, manifest: Manifest
) -> tuple[Packed, Payload]:
    """A payload with a right hash around whatever `members` are."""
    encoded = manifest.encode()
    head = tarfile.TarInfo(MANIFEST_NAME)
    head.size = len(encoded)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for member, data in [(head, encoded), *members]:
            archive.addfile(member, io.BytesIO(data))
    packed = zstandard.compress(raw.getvalue())
    (folder / "made-up").write_bytes(packed)
    payload = Payload(
        hashlib.sha256(packed).hexdigest(), len(packed), 1000, hashlib.sha256(encoded).hexdigest(), "a", True
    )
    return Packed(folder / "made-up", 0), payload


def a_file(name: str, data: bytes = b"xyz") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    return member, data


def a_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member, b""


def test_everything_is_there_as_it_was_packed(tiny: TinyRuntime, cache: Path) -> None:
    target = cache / "runtime"
    done = list(unpack(Packed(tiny.packed, 0), tiny.payload, target))
    assert done == sorted(done)
    assert 0 < done[-1] <= tiny.payload.packed_bytes
    assert (target / "tiny" / "library.so").readlink() == Path("lib/library.so")
    assert (target / "tiny" / "library.so").read_bytes() == bytes(range(256)) * 2000
    assert (target / "tiny" / "lib" / "empty").read_bytes() == b""
    assert os.access(target / "tiny" / "program", os.X_OK)
    assert not os.access(target / "tiny" / "lib" / "empty", os.X_OK)
    assert target.stat().st_mode & 0o777 == 0o700
    assert list(cache.iterdir()) == [target]


def test_one_flipped_bit_anywhere_leaves_nothing(tiny: TinyRuntime, cache: Path) -> None:
    whole = bytearray(tiny.packed.read_bytes())
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        broken = whole.copy()
        broken[place] ^= 0x10
        tiny.packed.write_bytes(broken)
        with pytest.raises(BrokenPayloadError):
            list(unpack(Packed(tiny.packed, 0), tiny.payload, cache / "runtime"))
        assert list(cache.iterdir()) == []


def test_a_payload_that_was_cut_leaves_nothing(tiny: TinyRuntime, cache: Path) -> None:
    whole = tiny.packed.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        tiny.packed.write_bytes(whole[:length])
        with pytest.raises(BrokenPayloadError):
            list(unpack(Packed(tiny.packed, 0), tiny.payload, cache / "runtime"))
        assert list(cache.iterdir()) == []


def test_right_content_under_another_hash_is_refused(tiny: TinyRuntime, cache: Path) -> None:
    with pytest.raises(BrokenPayloadError):
        list(unpack(Packed(tiny.packed, 0), replace(tiny.payload, digest="0" * 64), cache / "runtime"))
    with pytest.raises(BrokenPayloadError):
        list(unpack(Packed(tiny.packed, 0), replace(tiny.payload, manifest_digest="0" * 64), cache / "runtime"))
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "members",
    [
        [],
        [a_file("a"), a_file("a")],
        [a_file("a", b"longer")],
        [a_file("a"), a_file("b")],
        [a_file("../a")],
        [a_link("a", "/etc/passwd")],
        [a_file("a"), a_link("b", "elsewhere")],
    ],
)
def test_what_the_manifest_does_not_name_is_refused(
    members: list[tuple[tarfile.TarInfo, bytes]], cache: Path, tmp_path: Path
) -> None:
    packed, payload = made_by(members, tmp_path, Manifest({"a": 3}, {}))
    with pytest.raises(BrokenPayloadError):
        list(unpack(packed, payload, cache / "runtime"))
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "a").exists()


def test_a_link_that_leads_outside_is_refused_even_if_the_manifest_names_it(cache: Path, tmp_path: Path) -> None:
    packed, payload = made_by([a_link("a", "../../outside")], tmp_path, Manifest({}, {"a": "../../outside"}))
    with pytest.raises(BrokenPayloadError):
        list(unpack(packed, payload, cache / "runtime"))
    assert list(cache.iterdir()) == []


def test_a_person_who_interrupts_leaves_nothing(tiny: TinyRuntime, cache: Path) -> None:
    with contextlib.closing(unpack(Packed(tiny.packed, 0), tiny.payload, cache / "runtime")) as steps:
        next(steps)
        assert len(list(cache.iterdir())) == 1
    assert list(cache.iterdir()) == []


def test_too_little_room_is_told_before_anything_is_written(tiny: TinyRuntime, cache: Path) -> None:
    large = replace(tiny.payload, unpacked_bytes=2**60)
    with pytest.raises(NoRoomError, match=r"needs \d+ MB .*, and \d+ MB are free"):
        list(unpack(Packed(tiny.packed, 0), large, cache / "runtime"))
    assert list(cache.iterdir()) == []


def test_room_that_ends_on_the_way_leaves_nothing(tiny: TinyRuntime, cache: Path) -> None:
    """A file-size limit stands for the full disk: the same errors come from the same calls."""
    import multiprocessing

    process = multiprocessing.get_context("spawn").Process(
        target=_unpack_within_limit, args=(tiny.packed, tiny.payload, cache / "runtime")
    )
    process.start()
    process.join(60)
    assert process.exitcode == 42
    assert list(cache.iterdir()) == []


def _unpack_within_limit(packed: Path, payload: Payload, target: Path) -> None:
    import resource
    import signal
    import sys

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        list(unpack(Packed(packed, 0), payload, target))
    except NoRoomError:
        sys.exit(42)


def test_a_folder_that_cannot_be_written_is_named(tiny: TinyRuntime, cache: Path) -> None:
    with pytest.raises((CacheWriteError, FileNotFoundError)):
        list(unpack(Packed(tiny.packed, 0), tiny.payload, cache / "missing" / "runtime"))


def test_all_files_are_synced_before_the_name_is_given(
    tiny: TinyRuntime, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []
    real = unpacking._sync_file

    def note(path: Path) -> None:
        synced.append((path.name, (cache / "runtime").exists()))
        real(path)

    monkeypatch.setattr(unpacking, "_sync_file", note)
    list(unpack(Packed(tiny.packed, 0), tiny.payload, cache / "runtime"))
    before = {name for name, renamed in synced if not renamed}
    assert before == {"program", "library.so", "empty", MANIFEST_NAME}
    assert synced[-1] == ("cache", True)
