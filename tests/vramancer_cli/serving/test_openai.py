from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramancer_cli.errors import InvalidRequestError
from vramancer_cli.serving.openai import (
    CHAT_UNSUPPORTED,
    MAX_CHOICES,
    MOST_PRIORITY,
    TEXT_UNSUPPORTED,
    ChatMessage,
    Options,
    parse_chat,
    parse_text,
)
from vramancer_cli.serving.sampling_params import SamplingParams

HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": HELLO} | fields).encode()


def text(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "prompt": "hello"} | fields).encode()


def test_a_bare_chat_request_has_openai_defaults() -> None:
    query = parse_chat(chat())
    assert query.messages == (ChatMessage("user", "hello"),)
    assert query.options == Options(SamplingParams())


def test_every_honoured_field_arrives() -> None:
    raw = chat(
        temperature=0,
        top_p=0.5,
        max_tokens=7,
        seed=-3,
        stop=["a", "b"],
        stream=True,
        stream_options={"include_usage": True},
    )
    options = parse_chat(raw).options
    assert options.sampling == SamplingParams(temperature=0.0, top_p=0.5, seed=-3)
    assert options.max_tokens == 7
    assert options.stop == ("a", "b")
    assert options.stream and options.include_usage


def test_a_priority_is_a_bounded_whole_number() -> None:
    assert parse_chat(chat(priority=-3)).options.priority == -3
    assert parse_text(text(priority=MOST_PRIORITY)).options.priority == MOST_PRIORITY
    assert parse_text(text(priority=None)).options.priority == 0
    for wrong in (MOST_PRIORITY + 1, -MOST_PRIORITY - 1, 1.5, "1", True, 10**400):
        with pytest.raises(InvalidRequestError, match="'priority' must be a whole number from -1000 to 1000") as caught:
            parse_chat(chat(priority=wrong))
        assert caught.value.param == "priority"


def test_max_completion_tokens_wins_over_the_older_name() -> None:
    assert parse_chat(chat(max_tokens=5, max_completion_tokens=9)).options.max_tokens == 9


def test_text_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    query = parse_chat(chat(messages=[{"role": "developer", "content": parts}]))
    assert query.messages == (ChatMessage("system", "one two"),)


@pytest.mark.parametrize(
    ("prompt", "parsed"), [("hi", "hi"), (["hi"], "hi"), ([1, 2], (1, 2)), ([[1, 2]], (1, 2)), ([5], (5,)), ("", "")]
)
def test_prompt_comes_as_text_or_token_ids(prompt: Any, parsed: Any) -> None:
    assert parse_text(text(prompt=prompt)).prompt == parsed


def test_completions_default_to_16_tokens() -> None:
    assert parse_text(text()).options.max_tokens == 16


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 3}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}]},
            "messages[0].tool_calls",
        ),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "lucky"}, "seed"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": []}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"n": 0}, "n"),
        ({"n": MAX_CHOICES + 1}, "n"),
        ({"n": True}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"n": 1, "best_of": 2, "stream": True}, "best_of"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
    ],
)
def test_a_wrong_chat_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_chat(chat(**fields))
    assert caught.value.param == param
    assert param.split("[")[0].split(".")[0] in str(caught.value) or "Tool calls" in str(caught.value)


@pytest.mark.parametrize("prompt", [None, [], ["a", "b"], [[1], [2]], [1, "a"], [True], [-1], [[]], 5, {"a": 1}])
def test_a_wrong_prompt_is_named(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_text(text(prompt=prompt))
    assert caught.value.param == "prompt"


@pytest.mark.parametrize("name", sorted(CHAT_UNSUPPORTED))
def test_unsupported_chat_parameters_pass_with_null_and_their_default_only(name: str) -> None:
    for harmless in (None, *CHAT_UNSUPPORTED[name]):
        parse_chat(chat(**{name: harmless}))
    with pytest.raises(InvalidRequestError) as caught:
        parse_chat(chat(**{name: "something else"}))
    assert caught.value.param == name


@pytest.mark.parametrize("name", sorted(TEXT_UNSUPPORTED))
def test_unsupported_text_parameters_pass_with_null_and_their_default_only(name: str) -> None:
    for harmless in (None, *TEXT_UNSUPPORTED[name]):
        parse_text(text(**{name: harmless}))
    with pytest.raises(InvalidRequestError):
        parse_text(text(**{name: "something else"}))


def test_unknown_keys_are_ignored() -> None:
    assert parse_chat(chat(user="me", metadata={"a": "b"}, my_own=[1])).model == "m"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"model": "m", "temperature": NaN}',
        b'{"temperature": 1e999}',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b"[" * 200_000,
        b'{"a":' * 50_000,
    ],
)
def test_what_is_not_a_json_object_is_refused_by_name(raw: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_chat(raw)
    assert caught.value.code == "invalid_json"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ["model", "messages", "prompt", "temperature", "stop", "stream", "stream_options", "seed", "max_tokens", "n"]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_json_is_either_a_query_or_an_invalid_request(fields: dict[str, Any]) -> None:
    for parse, base in ((parse_chat, chat), (parse_text, text)):
        try:
            query = parse(base(**fields))
        except InvalidRequestError as error:
            assert str(error)
        else:
            assert query.model
