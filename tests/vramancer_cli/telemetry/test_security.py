"""What a security event can hold: each field its own form, and no secret in any of them."""

from __future__ import annotations

import json
import random
import secrets
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transport.tokens import DIGEST_BYTES, SECRET_BYTES, Token
from transport.words import make_code
from vramancer_cli.serving import keys
from vramancer_cli.telemetry.security import WITHHELD, Event, Fields, Kind, decode, encode, make, to_json

NOW = 1_800_000_000.25
NODE = "0123456789abcdef" * 2
FULL: Fields = {
    "node": NODE,
    "name": "attic pc",
    "address": "192.168.1.7",
    "invitation": "token 1a2b3c4d",
    "key": "laptop",
    "role": "admin",
    "why": "host",
    "action": "invite",
    "tries": 3,
    "count": 7,
    "listens": ("127.0.0.1:5000", "[::]:5001"),
    "speaks": "https",
    "open_to": "keys",
}


def test_every_field_survives_the_file() -> None:
    event = make(Kind.REFUSED, NOW, FULL)
    assert {name: getattr(event, name) for name in FULL} == FULL
    assert decode(encode(event)) == event
    assert encode(event).count(b"\n") == 1 and encode(event).endswith(b"\n")


def test_what_says_nothing_is_not_written() -> None:
    assert to_json(make(Kind.WRONG_KEY, NOW, {"address": "192.0.2.7"})) == {
        "at_s": NOW, "kind": "wrong_key", "address": "192.0.2.7",
    }  # fmt: skip


@pytest.mark.parametrize(
    "field", ["node", "address", "invitation", "key", "role", "why", "action", "listens", "speaks", "open_to"]
)
@pytest.mark.parametrize(
    "value", ["free text", "-----BEGIN PRIVATE KEY-----", b"bytes", 7, None, ["x"], "Bearer abc", "a\nb", "x" * 5000]
)
def test_a_field_that_is_not_of_its_form_is_left_out(field: str, value: object) -> None:
    event = make(Kind.REFUSED, NOW, cast(Fields, {field: value}))
    assert event == Event(Kind.REFUSED, NOW)


def test_a_name_is_printable_and_cut() -> None:
    event = make(Kind.JOINED, NOW, {"name": "\x1b[2Jattic\u202e\n" + "x" * 5000})
    assert event.name == "[2Jattic" + "x" * 32


def any_secrets() -> list[str]:
    token = Token(secrets.token_bytes(DIGEST_BYTES), secrets.token_bytes(SECRET_BYTES))
    code = make_code(4, random.SystemRandom())
    return [str(token), keys.make_key(), code, code.replace("-", " "), code.upper(), "-----BEGIN EC PRIVATE KEY-----"]


@pytest.mark.parametrize("secret", any_secrets(), ids=["token", "key", "code", "spaced", "shouted", "pem"])
@pytest.mark.parametrize("field", sorted(FULL))
@pytest.mark.parametrize("around", ["{}", "my {}", "{} "])
def test_a_secret_gets_into_no_field(secret: str, field: str, around: str) -> None:
    text = around.format(secret)
    value = (text,) if field == "listens" else text
    line = encode(make(Kind.REFUSED, NOW, cast(Fields, {field: value}))).decode()
    assert not any(secret[start : start + 6] in line for start in range(len(secret) - 5))


def test_a_key_that_is_called_like_a_code_is_withheld() -> None:
    event = make(Kind.KEY_ADDED, NOW, {"key": "4-otter-maple-drum"})
    assert event.key == WITHHELD
    assert decode(encode(event)) == event


@pytest.mark.parametrize("name", ["node2-workstation", "attic-pc-2", "gpu 3090 in the attic", "VRM_API_TOKEN"])
def test_ordinary_names_stay(name: str) -> None:
    assert make(Kind.JOINED, NOW, {"name": name}).name == name


@pytest.mark.parametrize("line", [
    b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"kind":"wrong_key"}',
    b'{"kind":"wrong_key","at_s":true}', b'{"kind":"wrong_key","at_s":NaN}', b'{"kind":"wrong_key","at_s":-1}',
    b'{"kind":"wrong_key","at_s":' + b"9" * 400 + b"}", b'{"kind":"of a later version","at_s":1}',
])  # fmt: skip
def test_a_broken_line_is_no_event(line: bytes) -> None:
    assert decode(line) is None


_VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*FULL, "other"]), _VALUES), st.sampled_from(sorted(Kind)))
def test_whatever_a_line_holds_it_gives_an_event_that_can_be_written_again(found: dict[str, Any], kind: Kind) -> None:
    event = decode(json.dumps({**found, "kind": kind, "at_s": NOW}).encode())
    assert event is not None
    assert decode(encode(event)) == event
    assert len(encode(event)) < 2000
