"""The official client against the real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import ClientSession
from openai import AsyncOpenAI

from tests.helpers.api_trust import authority, certificate_of, keyed
from tests.helpers.scripted_server import FixedAdmin, ScriptedDeployment, byte_level_folder, cluster_status, serving
from vramancer_cli.errors import NodeLostError, NotReadyError, QueueFullError
from vramancer_cli.models.sampling import Sampling
from vramancer_cli.serving.settings import ServerSettings
from vramancer_cli.serving.text import TextTools

HELLO: Any = [{"role": "user", "content": "hello"}]
SAID = "Machines share — one model. 漢🙂"


@asynccontextmanager
async def client(*deployments: ScriptedDeployment, **options: Any) -> AsyncIterator[AsyncOpenAI]:
    async with serving(*deployments, **options) as server:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as api:
            yield api


@pytest.fixture
def deployment(folder: Path) -> ScriptedDeployment:
    return ScriptedDeployment(folder, text=SAID)


async def test_chat(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        reply = await api.chat.completions.create(model="scripted", messages=HELLO, temperature=0, seed=5)
    assert reply.choices[0].message.content == SAID
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None and reply.usage.completion_tokens == len(deployment.tokens)
    request = deployment.requests[0]
    assert reply.usage.prompt_tokens == len(request.prompt)
    assert (request.sampling.temperature, request.sampling.seed) == (0.0, 5)
    assert reply.id == f"chatcmpl-{request.request_id}"


async def test_chat_streamed(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        stream = await api.chat.completions.create(
            model="scripted", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == SAID
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len(deployment.tokens)
    assert len({chunk.id for chunk in chunks}) == 1


async def test_a_stream_without_usage_has_none(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        stream = await api.chat.completions.create(model="scripted", messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
    assert chunks and all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_completions_whole_and_streamed(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        whole = await api.completions.create(model="scripted", prompt=[5, 6, 7], max_tokens=50)
        stream = await api.completions.create(model="scripted", prompt="hello", max_tokens=50, stream=True)
        streamed = "".join([chunk.choices[0].text async for chunk in stream])
    assert whole.choices[0].text == streamed == SAID
    assert deployment.requests[0].prompt == (5, 6, 7)


async def test_a_lower_priority_goes_first_and_only_an_admin_may_ask_for_it(
    deployment: ScriptedDeployment, tmp_path: Path
) -> None:
    settings, keys = keyed(tmp_path)
    asked = {"model": "scripted", "messages": HELLO}
    away = {"host": "0.0.0.0", "certificate": certificate_of(authority())}
    async with serving(deployment, settings=settings, **away) as server:
        by_role = {
            role: AsyncOpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) for role, key in keys.items()
        }
        for role, priority in (("user", 7), ("user", 0), ("admin", -7)):
            await by_role[role].chat.completions.create(**asked, extra_body={"priority": priority})
        with pytest.raises(openai.PermissionDeniedError) as caught:
            await by_role["user"].chat.completions.create(**asked, extra_body={"priority": -1})
        assert (caught.value.code, caught.value.param) == ("insufficient_role", "priority")
        for api in by_role.values():
            await api.close()
    assert [request.priority for request in deployment.requests] == [-7, 0, 7]


async def test_max_tokens_and_stop(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        cut = await api.completions.create(model="scripted", prompt="hello", max_tokens=2)
        stopped = await api.chat.completions.create(model="scripted", messages=HELLO, stop=["one", "zebra"])
        default = await api.completions.create(model="scripted", prompt="hello")
    assert cut.choices[0].finish_reason == "length"
    assert cut.usage is not None and cut.usage.completion_tokens == 2
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("Machines share — ", "stop")
    assert deployment.requests[2].max_tokens == 16 and default.choices


async def test_chat_logprobs_name_tokens_and_their_bytes(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        reply = await api.chat.completions.create(model="scripted", messages=HELLO, logprobs=True, top_logprobs=2)
        bare = await api.chat.completions.create(model="scripted", messages=HELLO, logprobs=True)
        without = await api.chat.completions.create(model="scripted", messages=HELLO)
    assert reply.choices[0].logprobs is not None
    content = reply.choices[0].logprobs.content or []
    assert bytes(byte for entry in content for byte in entry.bytes or []).decode() == SAID
    assert {entry.logprob for entry in content} == {-0.25}
    assert [[top.logprob for top in entry.top_logprobs] for entry in content] == [[-0.5, -1.5]] * len(content)
    partial = [entry for entry in content if entry.token.startswith("\\x")]
    assert partial and all(entry.token == "".join(f"\\x{b:02x}" for b in entry.bytes or []) for entry in partial)
    assert bare.choices[0].logprobs is not None and not (bare.choices[0].logprobs.content or [])[0].top_logprobs
    assert without.choices[0].logprobs is None
    assert [request.sampling.top_logprobs for request in deployment.requests] == [2, 0, None]


async def test_streamed_logprobs_are_those_of_the_whole_answer(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        whole = await api.chat.completions.create(model="scripted", messages=HELLO, logprobs=True, stop=" model")
        stream = await api.chat.completions.create(
            model="scripted", messages=HELLO, logprobs=True, stop=" model", stream=True
        )
        chunks = [chunk async for chunk in stream]
    streamed = [e for c in chunks if (logprobs := c.choices[0].logprobs) for e in logprobs.content or []]
    assert whole.choices[0].logprobs is not None and streamed == whole.choices[0].logprobs.content
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content


async def test_the_older_logprobs_have_four_lists_that_fit_the_text(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        reply = await api.completions.create(model="scripted", prompt="hello", max_tokens=50, logprobs=2)
        stream = await api.completions.create(model="scripted", prompt="hello", max_tokens=50, logprobs=2, stream=True)
        parts = [chunk.choices[0].logprobs async for chunk in stream if chunk.choices[0].logprobs]
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens and logprobs.text_offset and logprobs.top_logprobs
    whole_tokens = [place for place, token in enumerate(logprobs.tokens) if not token.startswith("bytes:")]
    for place in whole_tokens:
        assert SAID[logprobs.text_offset[place] :].startswith(logprobs.tokens[place])
    assert len(whole_tokens) < len(logprobs.tokens)
    assert all(len(top) == 3 for top in logprobs.top_logprobs), "the chosen token is among them"
    assert [token for part in parts for token in part.tokens or []] == logprobs.tokens
    assert [offset for part in parts for offset in part.text_offset or []] == logprobs.text_offset


@pytest.mark.parametrize("prompt", ["Machines share", [300, 12, 280, 0]])
async def test_echo_begins_with_the_prompt_and_its_logprobs(
    deployment: ScriptedDeployment, prompt: str | list[int]
) -> None:
    tools = TextTools.load(deployment.folder)
    ids = list(tools.encode(prompt)) if isinstance(prompt, str) else prompt
    asked: Any = {"model": "scripted", "prompt": prompt, "echo": True}
    async with client(deployment) as api:
        plain = await api.completions.create(**asked, max_tokens=50)
        scored = await api.completions.create(**asked, max_tokens=50, logprobs=0, n=2)
        alone = await api.completions.create(**asked, max_tokens=0, logprobs=1)
        stream = await api.completions.create(**asked, max_tokens=50, logprobs=0, stream=True)
        streamed = [chunk.choices[0] async for chunk in stream]
    text = tools.decode(ids)
    assert plain.choices[0].text == text + SAID and plain.choices[0].logprobs is None
    for choice in scored.choices:
        assert choice.text == text + SAID and choice.logprobs is not None
        values = choice.logprobs.token_logprobs or []
        own = -(1 + choice.index) / 4
        assert values == [None, *[-2.0] * (len(ids) - 1), *[own] * len(deployment.tokens)]
    assert alone.choices[0].text == text and alone.choices[0].finish_reason == "length"
    assert alone.usage is not None and alone.usage.completion_tokens == 0
    logprobs = alone.choices[0].logprobs
    assert logprobs is not None and logprobs.token_logprobs == [None, *[-2.0] * (len(ids) - 1)]
    assert (logprobs.top_logprobs or [0])[0] is None
    assert "".join(choice.text for choice in streamed) == text + SAID
    values = [v for choice in streamed if choice.logprobs for v in choice.logprobs.token_logprobs or []]
    assert values == (scored.choices[0].logprobs.token_logprobs if scored.choices[0].logprobs else None)


async def test_several_choices_whole_and_streamed(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        whole = await api.chat.completions.create(model="scripted", messages=HELLO, n=3)
        stream = await api.chat.completions.create(
            model="scripted", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert [(c.index, c.message.content, c.finish_reason) for c in whole.choices] == [
        (index, SAID, "stop") for index in range(3)
    ]
    assert whole.usage is not None and whole.usage.completion_tokens == 3 * len(deployment.tokens)
    for index in (0, 1):
        own = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert own[0].delta.role == "assistant" and own[-1].finish_reason == "stop"
        assert "".join(c.delta.content or "" for c in own) == SAID
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 2 * len(deployment.tokens)


async def test_best_of_gives_the_likeliest_answers_first(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        asked: Any = {"model": "scripted", "prompt": "hi", "n": 2, "max_tokens": 50}
        reply = await api.completions.create(**asked, best_of=4, logprobs=0)
        bare = await api.completions.create(**asked, best_of=4)
        with pytest.raises(openai.BadRequestError) as streamed:
            await api.completions.create(**asked, best_of=4, stream=True)
    firsts = [(choice.index, (choice.logprobs.token_logprobs or [0])[0]) for choice in reply.choices if choice.logprobs]
    assert firsts == [(0, -0.25), (1, -0.5)]
    assert [choice.logprobs for choice in bare.choices] == [None, None]
    assert reply.usage is not None and reply.usage.completion_tokens == 4 * len(deployment.tokens)
    assert streamed.value.param == "best_of"


async def test_every_sampling_field_reaches_the_engine(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        await api.completions.create(
            model="scripted",
            prompt="hi",
            temperature=0.5,
            top_p=0.9,
            presence_penalty=-1,
            frequency_penalty=2,
            logit_bias={"7": -100, "9": 2},
            seed=11,
            extra_body={
                "top_k": 12,
                "min_p": 0.1,
                "repetition_penalty": 1.2,
                "min_tokens": 3,
                "stop_token_ids": [5],
            },
        )
        with pytest.raises(openai.BadRequestError) as outside:
            await api.completions.create(model="scripted", prompt="hi", logit_bias={"9999": 1})
    [request] = deployment.requests
    assert request.sampling == Sampling(0.5, 0.9, 11, 12, 0.1, 1.2, -1.0, 2.0, ((7, -100.0), (9, 2.0)), 3)
    assert request.stop_token_ids == {0, 1, 5}
    assert outside.value.param == "logit_bias" and "9999" in outside.value.message


async def test_models(folder: Path) -> None:
    async with client(ScriptedDeployment(folder), ScriptedDeployment(folder, name="org/other")) as api:
        assert [model.id async for model in api.models.list()] == ["scripted", "org/other"]
        assert (await api.models.retrieve("org/other")).owned_by == "vramancer"
        with pytest.raises(openai.NotFoundError):
            await api.models.retrieve("absent")


async def test_errors_of_the_request(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        with pytest.raises(openai.NotFoundError) as missing:
            await api.chat.completions.create(model="absent", messages=HELLO)
        with pytest.raises(openai.BadRequestError) as wrong:
            await api.chat.completions.create(model="scripted", messages=HELLO, temperature=9)
        with pytest.raises(openai.BadRequestError) as several:
            await api.chat.completions.create(model="scripted", messages=HELLO, n=99)
        with pytest.raises(openai.BadRequestError) as long:
            await api.chat.completions.create(model="scripted", messages=HELLO, max_tokens=10_000)
        with pytest.raises(openai.BadRequestError) as long_stream:
            await api.completions.create(model="scripted", prompt=[5] * 300, stream=True)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    assert (wrong.value.param, several.value.param) == ("temperature", "n")
    assert wrong.value.type == "invalid_request_error"
    assert long.value.code == long_stream.value.code == "context_length_exceeded"
    assert "256" in long.value.message and "10000" in long.value.message
    assert deployment.requests == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [(NotReadyError("Two nodes are missing."), 503), (QueueFullError(), 429), (NodeLostError(node="attic"), 503)],
)
async def test_a_refusal_keeps_its_status_even_when_a_stream_was_asked_for(
    folder: Path, stream: bool, error: Exception, status: int
) -> None:
    async with client(ScriptedDeployment(folder, error=error, error_first=True)) as api:
        with pytest.raises(openai.APIStatusError) as caught:
            await api.chat.completions.create(model="scripted", messages=HELLO, stream=stream)
    assert caught.value.status_code == status
    assert int(caught.value.response.headers["Retry-After"]) > 0


async def test_a_model_that_is_still_being_placed_is_503_with_the_reason() -> None:
    admin = FixedAdmin(replace(cluster_status(), state="waiting", reason="0.4 GiB are missing."))
    async with client(admin=admin) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            await api.chat.completions.create(model="scripted", messages=HELLO)
    assert caught.value.status_code == 503 and "0.4 GiB" in caught.value.message


async def test_the_official_client_raises_when_a_node_is_lost_in_the_middle(folder: Path) -> None:
    lost = ScriptedDeployment(folder, text="half an", error=NodeLostError("The node 'attic' was lost.", node="attic"))
    async with client(lost) as api:
        got = ""
        with pytest.raises(openai.APIError, match="attic") as caught:
            stream = await api.chat.completions.create(model="scripted", messages=HELLO, stream=True)
            async for chunk in stream:
                got += chunk.choices[0].delta.content or ""
        assert got == "half an"
        assert caught.value.code == "node_lost"
        with pytest.raises(openai.InternalServerError, match="attic"):
            await api.chat.completions.create(model="scripted", messages=HELLO)


@pytest.mark.parametrize("error", [NodeLostError(node="attic"), ZeroDivisionError("inside")])
async def test_a_cut_stream_ends_with_an_error_event_and_no_done(folder: Path, error: Exception) -> None:
    body = {"model": "scripted", "prompt": "hi", "stream": True}
    async with serving(ScriptedDeployment(folder, text="half", error=error)) as server:
        async with ClientSession(server.url) as http, http.post("/v1/completions", json=body) as reply:
            raw = await reply.read()
    events = [line for line in raw.decode().split("\n\n") if line]
    failure = json.loads(events[-1].removeprefix("data: "))["error"]
    assert set(failure) == {"message", "type", "param", "code"}
    assert "[DONE]" not in raw.decode() and "inside" not in raw.decode()
    assert reply.headers["Connection"] == "close"


async def test_silence_is_filled_with_pings_that_clients_ignore(folder: Path) -> None:
    settings = ServerSettings(ping_s=0.05, close_s=0.2)
    slow = ScriptedDeployment(folder, text="late", first_pause_s=0.3)
    async with serving(slow, settings=settings) as server:
        body = {"model": "scripted", "messages": HELLO, "stream": True}
        async with ClientSession(server.url) as http, http.post("/v1/chat/completions", json=body) as reply:
            raw = (await reply.read()).decode()
        assert raw.count(": ping\n\n") >= 3 and raw.endswith("data: [DONE]\n\n")
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as api:
            stream = await api.chat.completions.create(model="scripted", messages=HELLO, stream=True)
            assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "late"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_aborts_its_request_at_once(folder: Path, stream: bool) -> None:
    endless = ScriptedDeployment(folder, endless=True, pause_s=0.01, context_tokens=10**6)
    async with client(endless) as api:
        asking = asyncio.ensure_future(
            api.chat.completions.create(model="scripted", messages=HELLO, stream=stream, max_tokens=10**5)  # type: ignore[call-overload]
        )
        await asyncio.wait_for(endless.started.wait(), 5)
        if stream:
            reply: Any = await asking
            await anext(aiter(reply))
            await reply.close()
        else:
            asking.cancel()
        await asyncio.wait_for(endless.aborted.wait(), 5)


async def test_a_client_that_leaves_before_the_first_token_aborts_too(folder: Path) -> None:
    silent = ScriptedDeployment(folder, first_pause_s=60)
    async with client(silent) as api:
        asking = asyncio.ensure_future(api.completions.create(model="scripted", prompt="hi", stream=True))
        await asyncio.wait_for(silent.started.wait(), 5)
        asking.cancel()
        await asyncio.wait_for(silent.aborted.wait(), 5)


async def test_a_client_that_does_not_read_is_cut(folder: Path) -> None:
    endless = ScriptedDeployment(folder, text="x" * 4000, endless=True, context_tokens=10**7)
    settings = ServerSettings(write_s=0.3, close_s=0.2)
    async with serving(endless, settings=settings) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        body = json.dumps({"model": "scripted", "prompt": "hi", "stream": True, "max_tokens": 10**6}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        await reader.readline()
        await asyncio.wait_for(endless.aborted.wait(), 30)
        writer.close()


async def test_many_clients_at_once_get_their_own_answers(folder: Path) -> None:
    deployments = [ScriptedDeployment(folder, name=f"m{i}", text=f"answer {i}", pause_s=0.002) for i in range(16)]
    async with client(*deployments) as api:
        replies = await asyncio.gather(*(api.chat.completions.create(model=f"m{i}", messages=HELLO) for i in range(16)))
    assert [reply.choices[0].message.content for reply in replies] == [f"answer {i}" for i in range(16)]


async def test_a_model_without_a_chat_template_says_so(tmp_path: Path) -> None:
    async with client(ScriptedDeployment(byte_level_folder(tmp_path, template=None))) as api:
        with pytest.raises(openai.BadRequestError) as caught:
            await api.chat.completions.create(model="scripted", messages=HELLO)
        assert caught.value.code == "no_chat_template"
