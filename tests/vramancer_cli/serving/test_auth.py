from __future__ import annotations

from dataclasses import replace

import pytest

from tests.helpers.api_trust import FAR
from vramancer_cli.serving.auth import GRANTS, Asked, Role, host_allowed, origin_allowed, refusal
from vramancer_cli.serving.settings import ServerSettings

OWN = frozenset({"Attic.local", "192.168.1.7"})


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:5000",
        "127.0.0.1",
        "127.0.0.1:5000",
        "127.8.8.8",
        "[::1]",
        "[::1]:80",
        "vram.localhost:1",
        "localhost.",
        "attic.local:5000",
        "192.168.1.7",
    ],
)
def test_this_machines_names_are_allowed(host: str) -> None:
    assert host_allowed(host, OWN)


@pytest.mark.parametrize(
    "host",
    [
        None,
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "0.0.0.0",
        "192.168.1.8",
        "evil@localhost",
        "localhost/evil",
        "localhost:port",
        "[::1",
        "::1",
        "local host",
        "2130706433",
    ],
)
def test_any_other_name_is_not(host: str | None) -> None:
    assert not host_allowed(host, OWN)


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        ("http://localhost:3000", "localhost:5000", True),
        ("http://[::1]:5000", "localhost:5000", True),
        ("http://attic.local:5000", "attic.local:5000", True),
        ("https://attic.local", "attic.local", True),
        ("http://attic.local:81", "attic.local:5000", False),
        ("https://evil.example", "localhost:5000", False),
        ("http://localhost.evil.example", "localhost:5000", False),
        ("null", "localhost:5000", False),
        ("file://localhost", "localhost:5000", False),
        ("http://", "localhost:5000", False),
        ("", "localhost:5000", False),
    ],
)
def test_origins(origin: str, host: str, allowed: bool) -> None:
    assert origin_allowed(origin, host) is allowed


@pytest.mark.parametrize(
    ("authorization", "api_keys", "shown"),
    [
        ("Bearer secret", (), "secret"),
        ("bearer  secret ", (), "secret"),
        ("Bearer one", ("two",), "one"),
        (None, ("two", "three"), "two"),
        ("", (" two ",), "two"),
        ("Basic secret", ("two",), "two"),
        ("Basic secret", (), None),
        ("Bearer", (), None),
        ("Bearer ", ("",), None),
        (None, (), None),
    ],
)
def test_where_a_key_is_shown(authorization: str | None, api_keys: tuple[str, ...], shown: str | None) -> None:
    asked = Asked(authorization=authorization, api_keys=api_keys)
    assert asked.shown_key == shown
    assert "secret" not in repr(asked) and "two" not in repr(asked)


NEAR = Asked(host="localhost", peer="127.0.0.1", own_address="127.0.0.1")


def code_of(asked: Asked, role: Role | None = "user", settings: ServerSettings | None = None) -> str | None:
    fault = refusal(asked, role, settings or ServerSettings())
    assert fault is None or fault.status == 403
    return fault.code if fault else None


def test_a_route_without_a_role_is_denied() -> None:
    assert code_of(NEAR) is None
    assert code_of(NEAR, None) == "no_role"


@pytest.mark.parametrize("peer", [FAR, "192.168.1.8", "fe80::1%eth0", "", "10.0.0.1"])
def test_plain_http_is_for_this_machine_only(peer: str) -> None:
    far = replace(NEAR, peer=peer, host="192.168.1.7", own_address="192.168.1.7")
    roles: tuple[Role | None, ...] = ("open", "user", "admin", "metrics", None)
    for role in roles:
        assert code_of(far, role) == "https_required"
    assert code_of(replace(far, secure=True)) is None
    assert code_of(far, settings=ServerSettings(allow_lan_http=True)) is None
    for loopback in ("127.0.0.1", "127.8.8.8", "::1"):
        assert code_of(replace(NEAR, peer=loopback)) is None


EVIL = "https://evil.example"
SITE = "https://chat.example"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_a_strange_origin_may_not_write(method: str) -> None:
    asked = replace(NEAR, method=method, origin=EVIL)
    assert code_of(asked) == "origin_not_allowed"
    assert code_of(replace(asked, origin=None)) is None
    assert code_of(replace(asked, origin="http://localhost:3000")) is None
    site = replace(asked, origin=SITE)
    assert code_of(site) == "origin_not_allowed"
    assert code_of(site, settings=ServerSettings(cors_origins=frozenset({SITE}))) is None


def test_a_strange_origin_may_read_blindly_but_not_open_a_websocket() -> None:
    asked = replace(NEAR, origin=EVIL)
    assert code_of(asked) is None
    assert code_of(replace(asked, upgrade=True)) == "origin_not_allowed"
    assert code_of(replace(asked, origin="null", upgrade=True)) == "origin_not_allowed"
    assert code_of(replace(asked, origin="http://localhost:5000", upgrade=True)) is None
    assert code_of(replace(asked, origin=None, upgrade=True)) is None


def test_a_key_grants_what_its_role_says() -> None:
    assert {
        "admin": {"open", "user", "admin", "metrics"},
        "user": {"open", "user"},
        "metrics": {"open", "metrics"},
    } == GRANTS
