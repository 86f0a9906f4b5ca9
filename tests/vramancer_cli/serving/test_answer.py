from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.scripted_server import ScriptedDeployment, byte_level_folder
from vramancer_cli.errors import InvalidRequestError
from vramancer_cli.models.readout import TokenScore
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.runtime.contracts import Generated, GenerationRequest
from vramancer_cli.serving.answer import CutAnswerError, answer, generation_request, prompt_tokens
from vramancer_cli.serving.openai import ChatMessage, ChatQuery, Options, TextQuery
from vramancer_cli.serving.replies import Piece
from vramancer_cli.serving.sampling_params import SamplingParams
from vramancer_cli.serving.text import TextTools

PLAIN = Options(SamplingParams(temperature=1.0, top_p=1.0))


def sampled(**fields: Any) -> Options:
    return replace(PLAIN, sampling=replace(PLAIN.sampling, **fields))


@pytest.fixture(scope="module")
def tools(folder: Path) -> TextTools:
    return TextTools.load(folder)


def asked(tools: TextTools, options: Options = PLAIN, prompt: int = 10, context: int = 100) -> GenerationRequest:
    return generation_request("id", tuple(range(prompt)), options, tools, context, default_tokens=64)


async def said(deployment: ScriptedDeployment, tools: TextTools, *stops: str) -> tuple[str, int, str | None]:
    request = GenerationRequest("id", (5,), Sampling(), 100)
    pieces = [piece async for piece in answer(deployment, request, tools, stops)]
    assert all(piece.finish_reason is None for piece in pieces[:-1])
    return "".join(p.text for p in pieces), sum(p.tokens for p in pieces), pieces[-1].finish_reason


def test_an_answer_without_a_limit_gets_what_is_left_but_not_more_than_the_default(tools: TextTools) -> None:
    assert asked(tools).max_tokens == 64
    assert asked(tools, prompt=70).max_tokens == 30
    assert asked(tools, replace(PLAIN, max_tokens=90)).max_tokens == 90


@pytest.mark.parametrize(("prompt", "limit", "total"), [(100, None, "101"), (120, None, "121"), (10, 91, "101")])
def test_too_long_names_the_numbers(tools: TextTools, prompt: int, limit: int | None, total: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        asked(tools, replace(PLAIN, max_tokens=limit), prompt)
    assert caught.value.code == "context_length_exceeded"
    assert all(number in str(caught.value) for number in ("100", str(prompt), total))


def test_seeds_are_kept_or_fresh(tools: TextTools) -> None:
    assert asked(tools, sampled(seed=7)).sampling.seed == 7
    assert asked(tools, sampled(seed=-1)).sampling.seed == 2**63 - 1
    assert len({asked(tools).sampling.seed for _ in range(8)}) == 8


def test_top_p_0_is_greedy(tools: TextTools) -> None:
    assert asked(tools, sampled(top_p=0.0)).sampling.temperature == 0.0


def test_the_models_stop_tokens_go_along(tools: TextTools) -> None:
    assert asked(tools).stop_token_ids == {0, 1}


async def test_token_ids_outside_the_vocabulary_are_refused(tools: TextTools) -> None:
    query = TextQuery("m", (1, tools.vocab_size), PLAIN)
    with pytest.raises(InvalidRequestError, match=str(tools.vocab_size - 1)):
        await prompt_tokens(query, tools, 100)
    assert await prompt_tokens(TextQuery("m", (1, 2), PLAIN), tools, 100) == (1, 2)


async def test_an_empty_prompt_is_refused(tools: TextTools) -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        await prompt_tokens(TextQuery("m", "", PLAIN), tools, 100)


async def test_what_cannot_fit_is_refused_before_it_is_encoded(
    tools: TextTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 100 * tools.longest_token_characters
    monkeypatch.setattr(tools, "encode", lambda text: (1,))
    monkeypatch.setattr(tools, "encode_chat", lambda messages: (2,))
    assert await prompt_tokens(TextQuery("m", "a" * most, PLAIN), tools, 100)
    with pytest.raises(InvalidRequestError, match=f"{most + 1} characters"):
        await prompt_tokens(TextQuery("m", "a" * (most + 1), PLAIN), tools, 100)
    with pytest.raises(InvalidRequestError, match="context holds 100") as caught:
        await prompt_tokens(ChatQuery("m", (ChatMessage("user", "a" * most),) * 2, PLAIN), tools, 100)
    assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")


async def test_the_whole_text_comes_with_every_token_counted(folder: Path, tools: TextTools) -> None:
    deployment = ScriptedDeployment(folder, text="One model — 漢🙂.")
    assert await said(deployment, tools) == ("One model — 漢🙂.", len(deployment.tokens), "stop")
    assert not deployment.aborted.is_set()


async def test_a_stop_string_ends_the_answer_and_aborts_the_request(folder: Path, tools: TextTools) -> None:
    deployment = ScriptedDeployment(folder, text="one two three", endless=True)
    text, _, finish = await said(deployment, tools, "o t")
    assert (text, finish) == ("one tw", "stop")
    assert deployment.aborted.is_set()


async def test_what_is_held_back_for_a_stop_comes_at_the_end(folder: Path, tools: TextTools) -> None:
    assert (await said(ScriptedDeployment(folder, text="the en"), tools, "end"))[0] == "the en"


async def test_a_choice_that_meets_its_stop_string_is_dropped_and_the_others_go_on(
    folder: Path, tools: TextTools
) -> None:
    class Differing(ScriptedDeployment):
        async def generate(self, request: GenerationRequest) -> AsyncGenerator[Generated, None]:
            for token in tools.encode("one two three"):
                yield Generated((token,), choice=0)
                yield Generated(tools.encode("x"), choice=1)
            yield Generated((), "length", 0)
            yield Generated((), "length", 1)

    deployment = Differing(folder)
    request = GenerationRequest("id", (5,), Sampling(), 100, choices=2)
    pieces = [piece async for piece in answer(deployment, request, tools, ["two"])]
    texts = ["".join(piece.text for piece in pieces if piece.choice == choice) for choice in (0, 1)]
    assert texts == ["one ", "x" * len(tools.encode("one two three"))]
    assert [(p.choice, p.finish_reason) for p in pieces if p.finish_reason] == [(0, "stop"), (1, "length")]
    assert deployment.dropped == [("id", 0)]


async def test_the_text_of_the_first_min_tokens_is_no_stop_string(folder: Path, tools: TextTools) -> None:
    deployment = ScriptedDeployment(folder, text="x x x x")
    request = GenerationRequest("id", (5,), Sampling(min_tokens=3), 100)
    pieces = [piece async for piece in answer(deployment, request, tools, ["x"])]
    assert "".join(piece.text for piece in pieces).count("x") == tools.decode(deployment.tokens[:3]).count("x") > 0
    assert pieces[-1].finish_reason == "stop"


async def test_an_echo_waits_until_the_whole_prompt_is_scored(folder: Path, tools: TextTools) -> None:
    class Overtaking(ScriptedDeployment):
        async def generate(self, request: GenerationRequest) -> AsyncGenerator[Generated, None]:
            yield Generated((), prompt_scores=(TokenScore(6, -1.0),))
            yield Generated(tools.encode("b"), "length", 1)
            yield Generated((), prompt_scores=(TokenScore(7, -2.0),))
            yield Generated(tools.encode("a"), "length", 0)

    request = GenerationRequest("id", (5, 6, 7), Sampling(top_logprobs=0), 1, choices=2, prompt_logprobs=0)
    pieces = [piece async for piece in answer(Overtaking(folder), request, tools, [], echo="prompt ")]
    scores = (TokenScore(5, None), TokenScore(6, -1.0), TokenScore(7, -2.0))
    assert pieces[:2] == [Piece("prompt ", choice=choice, scores=scores) for choice in (0, 1)]
    assert [(piece.choice, piece.text) for piece in pieces[2:] if piece.text] == [(1, "b"), (0, "a")]


def test_what_a_request_leaves_open_the_checkpoint_decides(tmp_path: Path) -> None:
    byte_level_folder(tmp_path)
    declared = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.05}
    (tmp_path / "generation_config.json").write_text(json.dumps(declared))
    tools = TextTools.load(tmp_path)
    assert asked(tools, Options(SamplingParams(seed=1))).sampling == Sampling(0.6, 0.9, 1, 20, 0.05, 1.05)
    said = SamplingParams(0.0, 1.0, -1, 0.0, 1.0, seed=1)
    assert asked(tools, Options(said)).sampling == Sampling(0.0, 1.0, 1)


def test_answers_to_be_ranked_are_scored_and_only_an_echo_reads_the_prompt(tools: TextTools) -> None:
    assert asked(tools, replace(PLAIN, n=2, best_of=3)).sampling.top_logprobs == 0
    assert asked(tools, replace(PLAIN, n=2, best_of=2)).sampling.top_logprobs is None
    echoing = replace(sampled(top_logprobs=4), echo=True)
    assert [asked(tools, options).prompt_logprobs for options in (PLAIN, sampled(top_logprobs=4), echoing)] == [
        None, None, 4,
    ]  # fmt: skip
    assert asked(tools, replace(PLAIN, echo=True)).prompt_logprobs is None
    assert asked(tools, replace(PLAIN, echo=True, max_tokens=0)).prompt_logprobs == 0


async def test_a_generator_that_just_ends_is_a_cut_answer(folder: Path, tools: TextTools) -> None:
    class Cut(ScriptedDeployment):
        async def generate(self, request: GenerationRequest) -> AsyncGenerator[Generated, None]:
            yield Generated((10,))

    with pytest.raises(CutAnswerError):
        await said(Cut(folder), tools)
