"""What the API's gate notes in the security log: refusals, wrong and ended keys, and who asked for what; no key."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.api_trust import FAR, bearer, keyed, signed
from vramancer_cli.serving import keys
from vramancer_cli.serving.auth import Asked, Role
from vramancer_cli.serving.exposure import exposed
from vramancer_cli.serving.faults import RefusedError
from vramancer_cli.serving.gate import Gate
from vramancer_cli.serving.settings import ServerSettings
from vramancer_cli.telemetry.security import Event, Kind
from vramancer_cli.telemetry.security_log import FILE, SecurityLog, read

NEAR = Asked(host="localhost", peer="127.0.0.1", own_address="127.0.0.1")
AWAY = Asked(host="192.168.1.7", peer=FAR, own_address="192.168.1.7", secure=True)


def showing(asked: Asked, key: str) -> Asked:
    return replace(asked, authorization=bearer(key)["Authorization"])


async def noted(settings: ServerSettings, *requests: tuple[Asked, Role | None], host: str = "0.0.0.0") -> list[Event]:
    """The events that these requests bring about, without what the keys' own verbs wrote."""
    folder = settings.state_folder
    assert folder is not None
    (folder / FILE).unlink(missing_ok=True)
    log = SecurityLog(folder)
    gate = Gate(settings, log)
    gate.listens_on(host)
    for asked, role in requests:
        with suppress(RefusedError):
            await gate.admit(asked, role)
    log.close()
    return [replace(event, at_s=0.0) for event in read(folder, 100)]


@pytest.mark.parametrize(
    ("asked", "role", "why"),
    [
        (replace(AWAY, host="evil.example"), "user", "host"),
        (replace(AWAY, method="POST", origin="https://evil.example"), "user", "origin"),
        (replace(AWAY, secure=False), "user", "https"),
        (AWAY, None, "no role"),
    ],
)
async def test_a_refused_request_is_an_event(asked: Asked, role: Role | None, why: str, tmp_path: Path) -> None:
    settings, _ = keyed(tmp_path)
    assert await noted(settings, (asked, role)) == [Event(Kind.REFUSED, 0.0, address=FAR, why=why)]


async def test_a_key_of_another_role_and_too_many_wrong_keys(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path, wrong_keys_limit=2)
    wrong = (showing(AWAY, keys.make_key()), "user")
    role, *wrongs = await noted(settings, (showing(AWAY, by_role["metrics"]), "admin"), wrong, wrong, wrong)
    assert role == Event(Kind.REFUSED, 0.0, address=FAR, why="role")
    assert sorted(wrongs, key=str) == sorted(
        [
            Event(Kind.WRONG_KEY, 0.0, address=FAR),
            Event(Kind.WRONG_KEY, 0.0, address=FAR),
            Event(Kind.REFUSED, 0.0, address=FAR, why="guesses"),
        ],
        key=str,
    )


async def test_wrong_keys_are_counted_and_never_written(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path, wrong_keys_limit=1000)
    key = by_role["user"]
    mistyped = key[:-1] + ("7" if key[-1] != "7" else "2")
    shown = [mistyped, "Bearer", "my password is hunter2", keys.make_key()]
    found = await noted(settings, *((showing(AWAY, key), "user") for key in shown * 5))
    assert found == [Event(Kind.WRONG_KEY, 0.0, address=FAR), Event(Kind.WRONG_KEY, 0.0, address=FAR, count=19)]
    text = (tmp_path / FILE).read_text()
    assert not any(key[start : start + 6] in text for key in shown for start in range(len(key) - 5))


async def test_a_key_that_has_ended_is_told_by_its_name_and_refused_as_any_other(tmp_path: Path) -> None:
    ended = keys.add(tmp_path, "old", "user", time.time() - 10 * 86400, days=1)
    settings = ServerSettings(state_folder=tmp_path)
    assert await noted(settings, (showing(AWAY, ended), "user")) == [Event(Kind.KEY_ENDED, 0.0, address=FAR, key="old")]


async def test_a_replay_and_a_request_of_another_time(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path)
    now = int(time.time())
    once = replace(
        AWAY, target="/v1/models", authorization=signed(by_role["user"], "GET", "/v1/models")["Authorization"]
    )
    late = signed(by_role["user"], "GET", "/v1/models", time_s=now - 1000)["Authorization"]
    found = await noted(settings, (once, "user"), (once, "user"), (replace(once, authorization=late), "user"))
    assert [(event.kind, event.why) for event in found] == [(Kind.REFUSED, "replay"), (Kind.REFUSED, "clock")]


async def test_who_changes_the_cluster_is_noted_by_the_name_of_the_key(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path)
    asks = [
        ("POST", "/api/invites", "invite"), ("POST", "/api/tokens", "token"), ("DELETE", "/api/nodes/attic", "remove"),
        ("POST", "/api/nodes/attic/drain", "drain"),
    ]  # fmt: skip
    requests = [replace(showing(AWAY, by_role["admin"]), method=method, target=target) for method, target, _ in asks]
    assert await noted(settings, *((asked, "admin") for asked in requests)) == [
        Event(Kind.ADMIN_ASKED, 0.0, address=FAR, key="admin", action=action) for _, _, action in asks
    ]
    refused = replace(showing(AWAY, by_role["user"]), method="POST", target="/api/invites")
    assert [event.kind for event in await noted(settings, (refused, "admin"))] == [Kind.REFUSED]


async def test_ordinary_requests_are_no_events(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path)
    ordinary = (showing(AWAY, by_role["user"]), AWAY, replace(AWAY, method="POST", target="/v1/completions"))
    assert await noted(settings, *((asked, "user") for asked in ordinary), (NEAR, "open")) == []


async def test_keys_are_noted_when_they_come_and_go(tmp_path: Path) -> None:
    keys.add(tmp_path, "laptop", "metrics", time.time())
    keys.revoke(tmp_path, "laptop")
    assert [(event.kind, event.key, event.role) for event in read(tmp_path, 9)] == [
        (Kind.KEY_ADDED, "laptop", "metrics"),
        (Kind.KEY_REVOKED, "laptop", "metrics"),
    ]


@pytest.mark.parametrize(
    ("host", "more", "can_https", "expected"),
    [
        ("127.0.0.1", {}, True, ("https and http", "this machine")),
        ("127.0.0.1", {}, False, ("http", "this machine")),
        ("127.0.0.1", {"api_token": "x"}, True, ("https and http", "keys")),
        ("127.0.0.1", {"production": True}, True, ("https and http", "keys")),
        ("0.0.0.0", {}, True, ("https", "keys")),
        ("0.0.0.0", {"allow_lan_http": True}, True, ("https and http", "keys")),
        ("192.168.1.7", {"allow_lan_http": True}, False, ("http", "keys")),
    ],
)
def test_how_a_bind_is_told(host: str, more: dict[str, object], can_https: bool, expected: tuple[str, str]) -> None:
    assert exposed(host, ServerSettings(**more), can_https=can_https) == expected  # type: ignore[arg-type]
