from __future__ import annotations

import os
from pathlib import Path

import pytest

from vramancer_cli.serving import keys
from vramancer_cli.serving.key_ring import TOKEN_NAME, KeyRing
from vramancer_cli.serving.keys import KeyRecord

NOW = 1_800_000_000.0


def test_a_key_counts_from_its_making_to_its_revocation_while_the_ring_lives(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path, None)
    assert ring.records() == ()
    key = keys.add(tmp_path, "laptop", "user", NOW)
    found = ring.find(key, NOW)
    assert found is not None and (found.name, found.role) == ("laptop", "user")
    assert ring.of_id(found.id, NOW) == found and ring.holds(found, NOW)
    keys.revoke(tmp_path, "laptop")
    assert ring.find(key, NOW) is None and ring.of_id(found.id, NOW) is None and not ring.holds(found, NOW)


def test_a_file_of_the_same_size_and_time_is_seen_to_be_another(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path, None)
    keys.add(tmp_path, "aa", "user", NOW)
    path = tmp_path / keys.KEYS_FILE
    old = path.stat()
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    (first,) = ring.records()
    keys.revoke(tmp_path, "aa")
    keys.add(tmp_path, "bb", "user", NOW)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert path.stat().st_size == old.st_size and path.stat().st_mtime_ns == old.st_mtime_ns
    assert [record.name for record in ring.records()] == ["bb"] and not ring.holds(first, NOW)


def test_a_wrong_key_and_an_ended_one_are_none(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path, "token")
    key = keys.add(tmp_path, "laptop", "user", NOW, days=1)
    for wrong in (keys.make_key(), key[:-1], key + "a", key.upper(), "", "é", "\udce9", keys.digest_of(key)):
        assert ring.find(wrong, NOW) is None
    found = ring.find(key, NOW)
    assert found is not None
    assert ring.find(key, NOW + 86400) is None and ring.of_id(found.id, NOW + 86400) is None
    assert not ring.holds(found, NOW + 86400)


def test_the_token_is_an_admin_key_and_no_file_is_needed(tmp_path: Path) -> None:
    for folder in (None, tmp_path):
        ring = KeyRing(folder, "tökén")
        found = ring.find("tökén", NOW)
        assert found is not None and (found.name, found.role) == (TOKEN_NAME, "admin")
    assert KeyRing(None, None).records() == ()
    assert KeyRing(None, "").records() == ()


def test_a_broken_file_lets_nobody_in_but_the_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ring = KeyRing(tmp_path, "token")
    key = keys.add(tmp_path, "laptop", "user", NOW)
    assert ring.find(key, NOW) is not None
    (tmp_path / keys.KEYS_FILE).write_text("{", "utf-8")
    assert ring.find(key, NOW) is None and ring.find("token", NOW) is not None
    assert "broken" in caplog.text
    (tmp_path / keys.KEYS_FILE).unlink()
    assert ring.find(key, NOW) is None


def test_every_key_is_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However early one fits, all are compared, and by hmac's own comparison."""
    import hmac

    made = [keys.add(tmp_path, f"key-{number}", "user", NOW) for number in range(3)]
    ring, compared = KeyRing(tmp_path, "token"), list[str]()
    real = hmac.compare_digest

    def counting(one: str, other: str) -> bool:
        compared.append(one)
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    for shown in ("token", *made, keys.make_key()):
        compared.clear()
        ring.find(shown, NOW)
        assert len(compared) == 4


def test_a_record_shows_no_secret() -> None:
    record = KeyRecord.of("secret", "a", "user", NOW)
    assert record.signing not in repr(record) and record.digest not in repr(record) and "secret" not in repr(record)
