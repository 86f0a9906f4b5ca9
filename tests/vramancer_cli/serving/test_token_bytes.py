"""The bytes of tokens, put together again, are the bytes of the text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from vramancer_cli.models.catalog import builtin_folder
from vramancer_cli.serving.text import TextTools
from vramancer_cli.serving.token_bytes import TokenBytes

SAMPLES = [
    "Machines share — one model. 漢🙂",
    " two  spaces ",
    "tab\tand\nline\r\n",
    "\x00\x7f\xa0ÿ",
    "é",
    "<|x|> <0x41>",
]


@pytest.fixture(scope="session")
def byte_level(folder: Path) -> TextTools:
    return TextTools.load(folder)


def joined(tools: TextTools, text: str) -> bytes:
    return b"".join(tools.token_bytes.of(token) for token in tools.encode(text))


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_byte_level_vocabulary(byte_level: TextTools, sample: str) -> None:
    assert joined(byte_level, sample) == sample.encode()


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=20))
def test_any_text_of_a_byte_level_vocabulary(byte_level: TextTools, text: str) -> None:
    assert joined(byte_level, text) == text.encode()


@pytest.mark.parametrize("sample", [sample for sample in SAMPLES if "<" not in sample])
def test_a_vocabulary_of_words_with_leading_spaces_and_bytes(spaced_folder: Path, sample: str) -> None:
    assert joined(TextTools.load(spaced_folder), sample).removeprefix(b" ") == sample.encode().removeprefix(b" ")


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_built_in_model(sample: str) -> None:
    tools = TextTools.load(builtin_folder())
    ids = [token for token in tools.encode(sample) if tools.token_bytes.is_text(token)]
    assert b"".join(map(tools.token_bytes.of, ids)) == sample.encode()


def test_special_tokens_are_no_text_and_stand_for_themselves(byte_level: TextTools) -> None:
    assert byte_level.token_bytes.of(0) == b"<|end|>"
    assert not byte_level.token_bytes.is_text(0) and byte_level.token_bytes.is_text(50)


def test_metaspace_and_no_decoder_and_ids_that_no_vocabulary_has() -> None:
    pieces = {1: "▁one", 2: "▁"}.get
    metaspace = TokenBytes(pieces, decoders.Metaspace().__getstate__(), frozenset(), frozenset())
    assert (metaspace.of(1), metaspace.of(2), metaspace.of(3)) == (b" one", b" ", b"")
    assert TokenBytes(pieces, None, frozenset(), frozenset()).of(1) == "▁one".encode()
