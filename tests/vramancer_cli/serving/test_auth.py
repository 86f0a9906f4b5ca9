from __future__ import annotations

import pytest

from vramancer_cli.errors import UsageError
from vramancer_cli.serving.auth import check_bind, host_allowed, origin_allowed, refusal, token_valid
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
    ("header", "valid"),
    [
        ("Bearer secret", True),
        ("bearer secret", True),
        ("Bearer  secret ", True),
        (None, False),
        ("", False),
        ("Bearer", False),
        ("Basic secret", False),
        ("Bearer secreT", False),
        ("Bearer s\udce9cret", False),
    ],
)
def test_bearer_token(header: str | None, valid: bool) -> None:
    assert token_valid(header, "secret") is valid


@pytest.mark.parametrize("host", ["0.0.0.0", "", "::", "192.168.1.7", "attic.local"])
def test_other_binds_than_loopback_need_a_token(host: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_bind(host, ServerSettings())
    assert "VRM_API_TOKEN" in caught.value.hint
    check_bind(host, ServerSettings(api_token="secret"))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_is_open(host: str) -> None:
    check_bind(host, ServerSettings())


def test_a_route_without_a_role_is_denied() -> None:
    fault = refusal(
        method="GET",
        host="localhost",
        origin=None,
        authorization=None,
        own_address="127.0.0.1",
        role=None,
        settings=ServerSettings(),
    )
    assert fault is not None and fault.status == 403
