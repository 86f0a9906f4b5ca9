from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path

import pytest

from vramancer_cli.errors import UsageError
from vramancer_cli.runtime.whole_file import StateFolderError
from vramancer_cli.serving import keys

NOW = 1_800_000_000.0


def test_a_key_is_kept_as_two_digests_and_never_as_itself(tmp_path: Path) -> None:
    key = keys.add(tmp_path, "laptop", "user", NOW, days=3)
    text = (tmp_path / keys.KEYS_FILE).read_text("utf-8")
    secret = key.removeprefix(keys.PREFIX)
    assert key not in text and secret not in text and secret[:20] not in text
    (record,) = keys.read(tmp_path)
    assert (record.name, record.role, record.created_s, record.ends_s) == ("laptop", "user", NOW, NOW + 3 * 86400)
    assert record.digest == keys.digest_of(key) and record.signing != record.digest
    assert record.digest not in repr(record) and record.signing not in repr(record)


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    keys.add(folder, "laptop", "user", NOW)
    assert stat.S_IMODE((folder / keys.KEYS_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_keys_have_256_bits_and_differ() -> None:
    made = {keys.make_key() for _ in range(50)}
    assert len(made) == 50
    assert {len(key) for key in made} == {len(keys.PREFIX) + 52 + 6}


def test_a_mistyped_key_is_told_from_a_wrong_one() -> None:
    key = keys.make_key()
    assert not keys.is_mistyped(key)
    body = len(keys.PREFIX)
    for place in range(body, len(key)):
        other = "a" if key[place] != "a" else "b"
        assert keys.is_mistyped(key[:place] + other + key[place + 1 :]), place
    assert keys.is_mistyped(key[:-1]) and keys.is_mistyped(key + "a") and keys.is_mistyped(keys.PREFIX)
    assert not keys.is_mistyped("any other secret")


def test_an_end_is_an_end(tmp_path: Path) -> None:
    keys.add(tmp_path, "laptop", "user", NOW, days=1)
    (record,) = keys.read(tmp_path)
    assert not record.ended(NOW + 86399) and record.ended(NOW + 86400)


def test_revoking_takes_that_key_and_no_other(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        keys.add(tmp_path, name, "user", NOW)
    assert keys.revoke(tmp_path, "two").name == "two"
    assert [record.name for record in keys.read(tmp_path)] == ["one", "three"]
    with pytest.raises(UsageError, match="'two'") as caught:
        keys.revoke(tmp_path, "two")
    assert "one, three" in caught.value.hint


@pytest.mark.parametrize("name", ["", "a b", "-a", "a" * 41, "a/b", "a\n", "é"])
def test_names_are_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name"):
        keys.add(tmp_path, name, "user", NOW)
    assert list(tmp_path.iterdir()) == []


def test_names_are_unique_days_and_numbers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.add(tmp_path, "laptop", "user", NOW)
    with pytest.raises(UsageError, match="already"):
        keys.add(tmp_path, "laptop", "admin", NOW)
    for days in (0, -1, keys.MOST_DAYS + 1):
        with pytest.raises(UsageError, match="days"):
            keys.add(tmp_path, "other", "user", NOW, days=days)
    monkeypatch.setattr(keys, "MOST_KEYS", 1)
    with pytest.raises(UsageError, match="1 keys"):
        keys.add(tmp_path, "other", "user", NOW)


def test_as_many_keys_as_are_allowed_can_be_read_again(tmp_path: Path) -> None:
    record = keys.KeyRecord.of("x", "n" * 40, "metrics", 1795265785.794262, 1795524985.794262)
    entries = [keys._encoded(record)] * keys.MOST_KEYS
    (tmp_path / keys.KEYS_FILE).write_text(json.dumps({"keys": entries}, indent=1), "utf-8")
    assert len(keys.read(tmp_path)) == keys.MOST_KEYS


GOOD = {"name": "a", "role": "user", "digest": "0" * 64, "signing": "0" * 64, "created_s": 1}
BROKEN_ENTRIES = [{}, 3, {**GOOD, "role": "root"}, {**GOOD, "digest": "0"}, {**GOOD, "created_s": float("nan")}]
BROKEN_ENTRIES += [{**GOOD, "created_s": "1"}, {**GOOD, "name": "a b"}, {**GOOD, "more": 1}, {**GOOD, "signing": None}]


def test_the_good_entry_is_good(tmp_path: Path) -> None:
    (tmp_path / keys.KEYS_FILE).write_text(json.dumps({"keys": [GOOD]}), "utf-8")
    assert len(keys.read(tmp_path)) == 1


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"keys": null}', *(json.dumps({"keys": [entry]}) for entry in BROKEN_ENTRIES)]
)
def test_a_broken_file_is_told_and_stays(tmp_path: Path, text: str) -> None:
    path = tmp_path / keys.KEYS_FILE
    path.write_text(text, "utf-8")
    with pytest.raises(StateFolderError, match="broken"):
        keys.read(tmp_path)
    with pytest.raises(StateFolderError, match="broken"):
        keys.add(tmp_path, "laptop", "user", NOW)
    assert path.read_text("utf-8") == text


def _add(folder: Path, number: int) -> None:
    keys.add(folder, f"key-{number}", "user", NOW)


def test_two_verbs_at_once_lose_no_key(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    running = [spawn.Process(target=_add, args=(tmp_path, number)) for number in range(4)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(record.name for record in keys.read(tmp_path)) == [f"key-{number}" for number in range(4)]


def test_a_lock_that_is_held_is_waited_for_and_then_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_LOCK_S", 0.05)
    with keys._locked(tmp_path):
        with pytest.raises(UsageError, match="Another command"):
            keys.add(tmp_path, "laptop", "user", NOW)
    assert keys.read(tmp_path) == ()
