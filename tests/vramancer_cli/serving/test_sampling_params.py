"""Which sampling fields a request may have, and that every wrong one is named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vramancer_cli.errors import InvalidRequestError
from vramancer_cli.models.sampling import TOP_LOGPROBS_LIMIT, Sampling
from vramancer_cli.serving.openai import Options, parse_chat, parse_text
from vramancer_cli.serving.sampling_params import MAX_BIASES, MAX_STOP_TOKEN_IDS, SamplingParams, chosen


def chat(**fields: Any) -> Options:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]} | fields
    return parse_chat(json.dumps(body).encode()).options


def text(**fields: Any) -> Options:
    return parse_text(json.dumps({"model": "m", "prompt": "hi"} | fields).encode()).options


GOOD = [
    ({"top_k": -1}, {"top_k": -1}),
    ({"top_k": 40, "min_p": 1, "repetition_penalty": 0.1}, {"top_k": 40, "min_p": 1.0, "repetition_penalty": 0.1}),
    ({"presence_penalty": -2, "frequency_penalty": 2}, {"presence_penalty": -2.0, "frequency_penalty": 2.0}),
    ({"presence_penalty": None, "logit_bias": None, "min_tokens": None}, {}),
    ({"logit_bias": {}}, {}),
    ({"logit_bias": {"0": -100, "12": 0.5}}, {"logit_bias": ((0, -100.0), (12, 0.5))}),
    ({"logit_bias": {"7": 1, "07": 2}}, {"logit_bias": ((7, 2.0),)}),
    ({"min_tokens": 3, "seed": 4}, {"min_tokens": 3, "seed": 4}),
]


@pytest.mark.parametrize(("fields", "expected"), GOOD)
def test_fields_arrive_at_both_endpoints(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert chat(**fields).sampling == text(**fields).sampling == SamplingParams(**expected)


WRONG: list[tuple[str, list[Any]]] = [
    ("temperature", [-0.1, 2.01, "1", True, [1]]),
    ("top_p", [-0.1, 1.1, "1"]),
    ("top_k", [-2, 2**31, 1.5, True, "4"]),
    ("min_p", [-0.01, 1.01, "0"]),
    ("repetition_penalty", [0, 0.05, 10.1, -1, "1"]),
    ("presence_penalty", [-2.1, 2.1, "0", False]),
    ("frequency_penalty", [-2.1, 2.1, {}]),
    ("min_tokens", [-1, 1.5, "2"]),
    ("seed", [2**63, -(2**63) - 1, 0.5]),
    ("n", [0, -1, 17, 1.0, True]),
    ("best_of", [0, 17, "2"]),
    ("stop_token_ids", ["1", [1.5], [-1], [True], [None], 7, list(range(MAX_STOP_TOKEN_IDS + 1))]),
    (
        "logit_bias",
        [
            [], "x", {"a": 1}, {"-1": 1}, {"1.5": 1}, {"": 1}, {"1": 101}, {"1": -100.5}, {"1": "2"}, {"1": None},
            {"1": True}, {"٣": 1}, {"9" * 40: 1}, {str(token): 1 for token in range(MAX_BIASES + 1)},
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("param", "value"), [(param, value) for param, values in WRONG for value in values])
def test_a_wrong_value_is_named_by_both_endpoints(param: str, value: Any) -> None:
    for parse in (chat, text):
        with pytest.raises(InvalidRequestError, match=param) as caught:
            parse(**{param: value})
        assert caught.value.param == param


def test_logprobs_are_asked_for_in_each_endpoints_own_way() -> None:
    assert chat(logprobs=True, top_logprobs=20).sampling.top_logprobs == TOP_LOGPROBS_LIMIT
    assert chat(logprobs=True).sampling.top_logprobs == 0
    assert chat(logprobs=False, top_logprobs=0).sampling.top_logprobs is chat().sampling.top_logprobs is None
    assert text(logprobs=0).sampling.top_logprobs == 0
    assert text(logprobs=5).sampling.top_logprobs == 5
    assert text().sampling.top_logprobs is None


@pytest.mark.parametrize(
    ("parse", "fields", "param"),
    [
        (chat, {"logprobs": 2}, "logprobs"),
        (chat, {"top_logprobs": 2}, "top_logprobs"),
        (chat, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (text, {"logprobs": True}, "logprobs"),
        (text, {"logprobs": 21}, "logprobs"),
        (text, {"echo": 1}, "echo"),
        (text, {"max_tokens": 0}, "max_tokens"),
        (text, {"echo": True, "max_tokens": -1}, "max_tokens"),
        (text, {"echo": True, "max_tokens": 0, "n": 2}, "n"),
        (text, {"best_of": 2, "n": 3}, "best_of"),
        (text, {"best_of": 2, "stream": True}, "best_of"),
        (text, {"min_tokens": 17}, "min_tokens"),
    ],
)
def test_what_does_not_go_together_is_named(parse: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse(**fields)
    assert caught.value.param == param


def test_choices_and_echo() -> None:
    assert (text(n=2).n, text(n=2).best_of, text(n=2, best_of=5).best_of, text(best_of=3).n) == (2, 2, 5, 1)
    assert text(n=2, best_of=2, stream=True).stream
    assert (text(echo=True, max_tokens=0).echo, text(echo=True, max_tokens=0).max_tokens) == (True, 0)
    assert text(echo=True).max_tokens == 16


def test_a_bias_stays_within_the_vocabulary() -> None:
    biased = SamplingParams(logit_bias=((9, 1.0),), seed=0)
    assert chosen(biased, Sampling(), vocab_size=10).logit_bias == ((9, 1.0),)
    with pytest.raises(InvalidRequestError, match="ends at 8") as caught:
        chosen(biased, Sampling(), vocab_size=9)
    assert caught.value.param == "logit_bias"
