from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.tiny_runtime import TinyRuntime, tiny_runtime
from vramancer_cli.launcher import cache
from vramancer_cli.launcher.cache import CacheFolderError
from vramancer_cli.launcher.payload import MANIFEST_NAME, Packed
from vramancer_cli.launcher.unpacking import unpack


@pytest.fixture
def tiny(tmp_path: Path) -> TinyRuntime:
    (tmp_path / "made").mkdir()
    return tiny_runtime(tmp_path / "made")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return cache.open_folder(tmp_path / "cache")


@pytest.fixture
def runtime(tiny: TinyRuntime, folder: Path) -> Path:
    target = cache.runtime_folder(folder, tiny.payload)
    list(unpack(Packed(tiny.packed, 0), tiny.payload, target))
    return target


def test_the_folder_is_made_for_its_owner_only(tmp_path: Path) -> None:
    path = cache.open_folder(tmp_path / "a" / "b")
    assert path.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_read_becomes_private(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o755)
    assert cache.open_folder(tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_write_is_refused_as_it_is(tmp_path: Path) -> None:
    """What lies in it may be anybody's, and programs are run from there."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(CacheFolderError, match="Other users may write"):
        cache.open_folder(tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o777


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    os.chown(tmp_path / "cache", 12345, 12345)
    with pytest.raises(CacheFolderError, match="another user"):
        cache.open_folder(tmp_path / "cache")


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "cache").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CacheFolderError, match="link"):
        cache.open_folder(tmp_path / "cache")


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(CacheFolderError):
        cache.open_folder(tmp_path / "cache")


def test_a_fresh_runtime_is_whole(runtime: Path, tiny: TinyRuntime) -> None:
    assert cache.is_whole(runtime, tiny.payload)


@pytest.mark.parametrize("name", ["tiny/program", "tiny/lib/library.so", "tiny/lib/empty", MANIFEST_NAME])
def test_a_missing_or_resized_file_is_noticed(name: str, runtime: Path, tiny: TinyRuntime) -> None:
    path = runtime / name
    before = path.read_bytes()
    path.write_bytes(before + b"!")
    assert not cache.is_whole(runtime, tiny.payload)
    path.write_bytes(before)
    assert cache.is_whole(runtime, tiny.payload)
    path.unlink()
    assert not cache.is_whole(runtime, tiny.payload)


def test_a_link_that_leads_elsewhere_is_noticed(runtime: Path, tiny: TinyRuntime) -> None:
    (runtime / "tiny" / "library.so").unlink()
    (runtime / "tiny" / "library.so").symlink_to("lib/empty")
    assert not cache.is_whole(runtime, tiny.payload)


def test_one_at_a_time_makes_a_runtime(folder: Path) -> None:
    with cache.alone(folder, "runtime-a") as free:
        assert free
        assert cache.is_busy(folder, "runtime-a")
        assert not cache.is_busy(folder, "runtime-b")
        assert cache.hold(folder, "runtime-a", patience_s=0.1) is None
        with cache.alone(folder, "runtime-a") as second:
            assert not second
    assert not cache.is_busy(folder, "runtime-a")


def test_many_run_out_of_one_runtime_and_nobody_removes_it_meanwhile(runtime: Path, folder: Path) -> None:
    first, second = cache.hold(folder, runtime.name), cache.hold(folder, runtime.name)
    assert first is not None
    assert second is not None
    first.close()
    assert not cache.remove(folder, runtime.name)
    assert runtime.exists()
    second.close()
    assert cache.remove(folder, runtime.name)
    assert list(folder.iterdir()) == []


def test_what_lies_in_the_cache_is_listed_the_current_one_first(runtime: Path, folder: Path, tiny: TinyRuntime) -> None:
    (folder / "runtime-0000").mkdir()
    (folder / "runtime-0000" / "file").write_bytes(b"12345")
    (folder / "something else").mkdir()
    held = cache.hold(folder, "runtime-0000")
    assert held is not None
    found = cache.runtimes(folder, runtime.name)
    assert [(r.name, r.current, r.in_use) for r in found] == [
        (runtime.name, True, False),
        ("runtime-0000", False, True),
    ]
    assert found[1].size_bytes == 5
    assert found[0].size_bytes > tiny.payload.unpacked_bytes
    held.close()


def test_a_cache_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert cache.runtimes(tmp_path / "none", None) == []
    assert not (tmp_path / "none").exists()


def test_what_a_killed_unpacking_left_goes_with_its_runtime(runtime: Path, folder: Path) -> None:
    (folder / f".unpacking-{runtime.name}-abc").mkdir()
    (folder / ".unpacking-runtime-other-abc").mkdir()
    cache.remove_leftovers(folder, runtime.name)
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {runtime.name, ".unpacking-runtime-other-abc"}
