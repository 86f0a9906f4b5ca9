from __future__ import annotations

import secrets
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transport.errors import PairingError
from transport.tokens import Token, TokenError, hash_secret, parse_token

TOKEN = Token(bytes(range(32)), bytes(range(100, 116)))
ALPHABET = string.ascii_lowercase + string.digits


def test_a_token_reads_back_however_it_was_copied() -> None:
    text = str(TOKEN)
    assert text.startswith("vrm1-")
    assert len(text) == 91
    for copied in (text, text.upper(), f"  {text}\n"):
        assert parse_token(copied) == TOKEN


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16))
def test_every_token_reads_back(digest: bytes, secret: bytes) -> None:
    assert parse_token(str(Token(digest, secret))) == Token(digest, secret)


def test_every_single_mistyped_character_is_told() -> None:
    text = str(TOKEN)
    for place in range(len(text)):
        for letter in ALPHABET:
            if letter != text[place]:
                with pytest.raises(TokenError):
                    parse_token(text[:place] + letter + text[place + 1 :])


def test_two_neighbours_exchanged_are_told() -> None:
    text = str(TOKEN)
    for place in range(len(text) - 1):
        if text[place] != text[place + 1]:
            with pytest.raises(TokenError):
                parse_token(text[:place] + text[place + 1] + text[place] + text[place + 2 :])


@pytest.mark.parametrize(
    "text", ["", "vrm1", str(TOKEN)[:-1], str(TOKEN) + "a", "4-otter-maple-drum", "vrm2" + str(TOKEN)[4:], "é" * 91]
)
def test_what_is_no_token_is_told_with_the_way_to_get_one(text: str) -> None:
    with pytest.raises(TokenError, match="no join token") as raised:
        parse_token(text)
    assert "invite --token" in raised.value.hint


def test_a_whole_disk_in_the_token_file_is_not_searched() -> None:
    with pytest.raises(TokenError, match="too long"):
        parse_token("a" * 10_000_000)


def test_the_secret_is_not_shown_by_accident() -> None:
    secret = secrets.token_bytes(16)
    token = Token(bytes(32), secret)
    assert repr(secret) not in repr(token)
    assert secret.hex() not in hash_secret(secret)
    assert len(hash_secret(secret)) == 64


def test_a_typing_error_is_a_matter_of_trust_for_the_exit_code() -> None:
    assert issubclass(TokenError, PairingError)
    assert TokenError.exit_code == 4
