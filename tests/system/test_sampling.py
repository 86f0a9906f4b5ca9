"""The official client asks three real nodes for everything that a request may say about its tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

from build_scripts.local_cluster import LocalCluster
from vramancer_cli.models.catalog import BUILTIN_NAME, builtin_folder

QUESTION: Any = [{"role": "user", "content": "What is a shard?"}]


@pytest.fixture(scope="module")
def api(three_nodes: LocalCluster) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{three_nodes.head.api_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def chat(api: OpenAI, **asked: Any) -> Any:
    return api.chat.completions.create(model=BUILTIN_NAME, messages=QUESTION, **{"max_tokens": 12, **asked})


def complete(api: OpenAI, **asked: Any) -> Any:
    return api.completions.create(model=BUILTIN_NAME, **{"prompt": "A layer is", "max_tokens": 12, **asked})


def test_a_seed_gives_its_text_and_each_choice_has_its_own(api: OpenAI) -> None:
    one, again = chat(api, temperature=1.5, seed=7, n=3), chat(api, temperature=1.5, seed=7, n=3)
    texts = [choice.message.content for choice in one.choices]
    assert texts == [choice.message.content for choice in again.choices]
    assert len(set(texts)) > 1
    assert texts[1] == chat(api, temperature=1.5, seed=8).choices[0].message.content
    streamed = {0: "", 1: "", 2: ""}
    for chunk in chat(api, temperature=1.5, seed=7, n=3, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(streamed.values()) == texts


def test_log_probabilities_add_up_and_are_those_of_transformers(api: OpenAI) -> None:
    content = chat(api, temperature=0, logprobs=True, top_logprobs=20).choices[0].logprobs.content
    for entry in content:
        assert entry.logprob == entry.top_logprobs[0].logprob and entry.token == entry.top_logprobs[0].token
        assert len(entry.top_logprobs) == 20
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1 + 1e-4
    tokenizer = AutoTokenizer.from_pretrained(builtin_folder())
    model = AutoModelForCausalLM.from_pretrained(builtin_folder(), dtype=torch.float32)
    ids = tokenizer.encode("A layer is a part of the model.")
    told = complete(api, prompt=ids, max_tokens=0, echo=True, logprobs=0).choices[0]
    with torch.inference_mode():
        logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    expected = [float(logprobs[place, token]) for place, token in enumerate(ids[1:])]
    assert told.logprobs.token_logprobs[0] is None
    assert told.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert told.text == tokenizer.decode(ids, skip_special_tokens=True)


def test_stops_biases_and_penalties_do_what_they_say(api: OpenAI) -> None:
    whole = complete(api, temperature=0, logprobs=0).choices[0]
    first = whole.logprobs.tokens[0]
    [token] = AutoTokenizer.from_pretrained(builtin_folder()).encode(first, add_special_tokens=False)
    stopped = complete(api, temperature=0, extra_body={"stop_token_ids": [token]}).choices[0]
    assert (stopped.text, stopped.finish_reason) == ("", "stop")
    late = complete(api, temperature=0, max_tokens=4, extra_body={"stop_token_ids": [token], "min_tokens": 4}).choices[
        0
    ]
    assert late.finish_reason == "length" and not late.text.startswith(first)
    assert complete(api, temperature=0, stop=whole.text[3:8]).choices[0].text == whole.text[:3]
    banned = complete(api, temperature=0, logit_bias={str(token): -100}, logprobs=0).choices[0]
    assert first not in banned.logprobs.tokens
    only = complete(api, temperature=0, logit_bias={str(token): 100}, logprobs=0).choices[0]
    assert set(only.logprobs.tokens) == {first}
    varied = complete(api, temperature=0, logit_bias={str(token): 50}, frequency_penalty=2, max_tokens=40, logprobs=0)
    assert varied.choices[0].logprobs.tokens[0] == first


def test_best_of_gives_the_likeliest(api: OpenAI) -> None:
    asked: dict[str, Any] = {"temperature": 1.5, "seed": 3, "logprobs": 0}
    best = complete(api, **asked, n=2, best_of=5).choices
    every = complete(api, **asked, n=5).choices
    ranked = sorted((sum(c.logprobs.token_logprobs) / len(c.logprobs.token_logprobs), c.text) for c in every)[::-1]
    assert [choice.text for choice in best] == [text for _, text in ranked[:2]]


def test_embeddings_are_the_final_hidden_states(api: OpenAI) -> None:
    texts = ["A shard is the weights of a layer range.", "Hello!"]
    reply = api.embeddings.create(model=BUILTIN_NAME, input=texts)
    tokenizer = AutoTokenizer.from_pretrained(builtin_folder())
    model = AutoModelForCausalLM.from_pretrained(builtin_folder(), dtype=torch.float32)
    for text, told in zip(texts, reply.data, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([tokenizer.encode(text)])
            hidden = model(ids, output_hidden_states=True).hidden_states[-1][0].mean(0)
        expected = hidden / hidden.norm()
        torch.testing.assert_close(torch.tensor(told.embedding), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"n": 0}, "n"),
        ({"logit_bias": {"1": 200}}, "logit_bias"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"extra_body": {"min_p": 2}}, "min_p"),
    ],
)
def test_wrong_values_are_400_and_named(api: OpenAI, asked: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(api, **asked)
    assert caught.value.param == param
