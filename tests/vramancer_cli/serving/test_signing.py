from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.api_trust import keyed
from tests.helpers.scripted_server import serving
from vramancer_cli.serving import signing
from vramancer_cli.serving.keys import KeyRecord
from vramancer_cli.serving.signing import Signed

KEY = KeyRecord.of("vrm_k1_example", "a", "user", 0.0)
NONCE = "0123456789abcdef"


def header(**other: object) -> str:
    asked = {"method": "POST", "target": "/v1/completions?b=2&a=1", "body": b"{}", "time_s": 1_800_000_000}
    asked |= {"nonce": NONCE, "key_id": KEY.id, "secret": KEY.signing}
    return signing.sign(**(asked | other))  # type: ignore[arg-type]


def valid(value: str, method: str = "POST", target: str = "/v1/completions?b=2&a=1") -> bool:
    signed = signing.parse(value)
    assert signed is not None
    return signing.is_valid(signed, KEY.signing, method, target)


def test_what_was_signed_is_valid_and_can_be_made_from_the_description_alone() -> None:
    value = header()
    assert valid(value)
    text = "\n".join(
        [
            "VRM-HMAC-SHA256", "POST", "/v1/completions", "a=1&b=2", hashlib.sha256(b"{}").hexdigest(), "1800000000",
            NONCE,
        ]
    )  # fmt: skip
    secret = hmac.new(b"vrm_k1_example", b"vramancer request signing 1", "sha256").digest()
    key_id = hashlib.sha256(b"vramancer api key 1\0vrm_k1_example").hexdigest()[:16]
    signature = hmac.new(secret, text.encode(), "sha256").hexdigest()
    assert value == (
        f"VRM-HMAC-SHA256 key={key_id}, time=1800000000, nonce={NONCE}, "
        f"body={hashlib.sha256(b'{}').hexdigest()}, signature={signature}"
    )


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/v1/completions?b=2&a=1"),
        ("POST", "/v1/chat/completions?b=2&a=1"),
        ("POST", "/v1/completions?b=2&a=2"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/completions?b=2&a=1&c=3"),
        ("POST", "/v1/Completions?b=2&a=1"),
        ("POST", "/v1/%63ompletions?b=2&a=1"),
    ],
)
def test_another_method_path_or_query_is_not(method: str, target: str) -> None:
    assert not valid(header(), method, target)


def test_the_order_of_the_querys_names_does_not_matter_but_that_of_equal_ones_does() -> None:
    assert valid(header(), target="/v1/completions?a=1&b=2")
    twice = header(target="/x?a=1&a=2")
    assert valid(twice, target="/x?a=1&a=2") and not valid(twice, target="/x?a=2&a=1")


@pytest.mark.parametrize("field", ["key", "time_s", "nonce", "body", "signature"])
def test_every_field_is_covered(field: str) -> None:
    signed = signing.parse(header())
    assert signed is not None
    others = {"key": "f" * 16, "time_s": 1_800_000_001, "nonce": "f" * 16, "body": "0" * 64, "signature": "0" * 64}
    changed = replace(signed, **{field: others[field]})
    other_key = KeyRecord.of("another", "b", "user", 0.0)
    secret = other_key.signing if field == "key" else KEY.signing  # the key's name picks the secret
    assert not signing.is_valid(changed, secret, "POST", "/v1/completions?b=2&a=1")


def test_parsing_takes_back_what_was_written_and_nothing_else() -> None:
    value = header()
    signed = signing.parse(value)
    assert signed is not None and signed.header() == value
    wrong = [
        value + " ", value[:-1], value.replace("nonce=", "nonse="), value.replace(NONCE, "short"), value.lower(),
        value.replace(NONCE, "n" * 65), value.replace("time=1", "time=-1"),
        value.replace("time=", "time=9999999999999"),
        value.replace(NONCE, NONCE + "\n"), value + ", key=0", "VRM-HMAC-SHA256", "VRM-HMAC-SHA256 ", "Bearer x", "",
        value.replace("1800000000", "18000000٠٠"),
    ]  # fmt: skip
    for text in wrong:
        assert signing.parse(text) is None, text


def test_a_signed_request_is_known_by_its_scheme() -> None:
    assert signing.is_signed(header()) and signing.is_signed("vrm-hmac-sha256 garbage")
    assert not signing.is_signed("Bearer x") and not signing.is_signed(None) and not signing.is_signed("")


def test_signatures_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = hmac.compare_digest

    def counting(one: str, other: str) -> bool:
        nonlocal calls
        calls += 1
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    assert not signing.is_valid(Signed(KEY.id, 1, NONCE, "0" * 64, "0" * 64), KEY.signing, "GET", "/")
    assert calls == 1


async def test_the_example_of_the_documentation_works(tmp_path: Path) -> None:
    text = (Path(__file__).parents[3] / "docs" / "api-signing.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    told: dict[str, Any] = {}
    exec(code, told)
    settings, by_role = keyed(tmp_path, production=True)
    async with serving(settings=settings) as server:
        for role, method, target, body, status in (
            ("user", "GET", "/api/pipeline/status?fresh=true&b=%2F&a=1", b"", 200),
            ("user", "POST", "/api/invites", b"{}", 403),
            ("admin", "POST", "/api/invites", b"{}", 201),
        ):
            asked = ("127.0.0.1", server.port, by_role[role], method, target, body)
            reply = await asyncio.to_thread(told["signed_request"], *asked)
            assert reply.status == status, reply.read()
            reply.close()
