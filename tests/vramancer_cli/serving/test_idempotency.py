"""A request that comes again with its key: answered again, never run again. By the official client, over real HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import ClientSession, ClientTimeout
from openai import AsyncOpenAI

from tests.helpers.scripted_server import ScriptedDeployment, serving
from tests.vramancer_cli.serving.test_completions import HELLO, SAID, client
from vramancer_cli.errors import NodeLostError, NotReadyError
from vramancer_cli.serving.idempotency import HEADER
from vramancer_cli.serving.settings import ServerSettings

KEY = {HEADER: '"one-of-mine"'}
ASK: dict[str, Any] = {"model": "scripted", "messages": HELLO, "extra_headers": KEY}


@pytest.fixture
def deployment(folder: Path) -> ScriptedDeployment:
    return ScriptedDeployment(folder, text=SAID)


async def streamed(api: AsyncOpenAI, **more: Any) -> tuple[str, list[str]]:
    """The text, and the ids of the chunks."""
    chunks = [chunk async for chunk in await api.chat.completions.create(**ASK | more, stream=True)]
    assert chunks[-1].choices[0].finish_reason == "stop"
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks), [chunk.id for chunk in chunks]


async def test_the_second_gets_the_very_answer_of_the_first(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        first, second = [await api.chat.completions.create(**ASK) for _ in range(2)]
        unquoted = await api.chat.completions.create(**ASK | {"extra_headers": {HEADER: "one-of-mine"}})
        assert first == second == unquoted
        assert len(deployment.requests) == 1
        await api.chat.completions.create(**ASK | {"extra_headers": {HEADER: "another"}})
        await api.chat.completions.create(model="scripted", messages=HELLO)
    assert len(deployment.requests) == 3


async def test_a_stream_is_told_again_from_its_beginning(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        first, second = [await streamed(api) for _ in range(2)]
    assert first == second and first[0] == SAID
    assert len(deployment.requests) == 1


async def test_one_that_comes_while_the_first_runs_hears_the_same(deployment: ScriptedDeployment) -> None:
    deployment.pause_s = 0.02
    async with client(deployment) as api:
        first, second = await asyncio.gather(streamed(api), streamed(api))
        assert first == second and first[0] == SAID
        wholes = [api.completions.create(model="scripted", prompt="x", extra_headers=KEY) for _ in range(2)]
        one, other = await asyncio.gather(*wholes)
        assert one == other, "another path, so another request"
    assert len(deployment.requests) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_was_cut_off_gets_its_answer_when_it_comes_back(
    deployment: ScriptedDeployment, stream: bool
) -> None:
    deployment.pause_s = 0.02
    async with serving(deployment) as server:
        body = {"model": "scripted", "messages": HELLO, "stream": stream}
        async with ClientSession(server.url, headers=KEY) as http:
            with pytest.raises(TimeoutError):
                async with http.post("/v1/chat/completions", json=body, timeout=ClientTimeout(0.1)) as reply:
                    await reply.read()
            async with http.post("/v1/chat/completions", json=body) as reply:
                assert reply.status == 200
                text = await reply.text()
        assert "🙂" in text or "\\ud83d" in text
        assert not deployment.aborted.is_set()
    assert len(deployment.requests) == 1


async def test_another_body_is_refused_with_422(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        await api.chat.completions.create(**ASK)
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            await api.chat.completions.create(**ASK, max_tokens=5)
    assert caught.value.code == "idempotency_key_reused"
    assert len(deployment.requests) == 1


@pytest.mark.parametrize("key", ["", '""', "with space", "é", "x" * 256])
async def test_what_is_no_key_is_refused(deployment: ScriptedDeployment, key: str) -> None:
    async with serving(deployment) as server, ClientSession(server.url) as http:
        body = {"model": "scripted", "messages": HELLO}
        async with http.post("/v1/chat/completions", json=body, headers={HEADER: key}) as reply:
            assert (reply.status, (await reply.json())["error"]["code"]) == (400, "invalid_idempotency_key")
    assert deployment.requests == []


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_refused_or_failed_has_not_used_its_key_up(deployment: ScriptedDeployment, stream: bool) -> None:
    deployment.error, deployment.error_first = NotReadyError("The model is being loaded."), True
    async with client(deployment) as api:
        with pytest.raises(openai.InternalServerError) as caught:
            await api.chat.completions.create(**ASK, stream=stream)
        assert caught.value.status_code == 503
        deployment.error, deployment.error_first = NodeLostError("gone", node="oak"), False
        with pytest.raises(openai.APIError) as failed:
            reply = await api.chat.completions.create(**ASK, stream=stream)
            if stream:
                _ = [chunk async for chunk in reply]
        assert failed.value.code == "node_lost"
        await asyncio.sleep(0.05)
        deployment.error = None
        assert (await streamed(api))[0] == SAID if stream else await api.chat.completions.create(**ASK)
    assert len(deployment.requests) == 3


async def test_after_a_restart_what_may_have_run_is_not_run_again(
    deployment: ScriptedDeployment, tmp_path: Path
) -> None:
    settings = ServerSettings(state_folder=tmp_path, close_s=0.2)
    async with client(deployment, settings=settings) as api:
        first = await api.chat.completions.create(**ASK)
        assert first == await api.chat.completions.create(**ASK)
    async with client(deployment, settings=settings) as api:
        with pytest.raises(openai.ConflictError) as caught:
            await api.chat.completions.create(**ASK)
        assert caught.value.code == "idempotency_answer_lost"
        with pytest.raises(openai.UnprocessableEntityError):
            await api.chat.completions.create(**ASK, max_tokens=5)
        await api.chat.completions.create(**ASK | {"extra_headers": {HEADER: "new"}})
    assert len(deployment.requests) == 2
    assert "one-of-mine" not in (tmp_path / "accepted-keys").read_text()


async def test_a_server_that_ends_cuts_a_kept_answer_honestly(deployment: ScriptedDeployment) -> None:
    deployment.pause_s, deployment.endless = 0.02, True
    async with serving(deployment) as server:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as api:
            stream = aiter(await api.chat.completions.create(**ASK, stream=True, max_tokens=200))
            await anext(stream)
            closing = asyncio.create_task(server.close())
            with pytest.raises(openai.APIError):  # and no clean end
                _ = [chunk async for chunk in stream]
            await closing
    assert deployment.aborted.is_set()
