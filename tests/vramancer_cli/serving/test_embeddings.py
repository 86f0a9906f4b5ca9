"""/v1/embeddings, asked by the official client: a scripted model that answers with lengths, then a real one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import ClientSession
from openai import AsyncOpenAI

from tests.helpers.scripted_server import ScriptedDeployment, serving
from vramancer_cli.errors import InvalidRequestError, QueueFullError
from vramancer_cli.runtime.contracts import EmbeddingRequest
from vramancer_cli.serving.embeddings import AT_ONCE, MAX_INPUTS, EmbeddingQuery, normalised, parse_embeddings
from vramancer_cli.serving.text import TextTools


@asynccontextmanager
async def client(*deployments: ScriptedDeployment) -> AsyncIterator[AsyncOpenAI]:
    async with serving(*deployments) as server:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as api:
            yield api


@pytest.fixture
def deployment(folder: Path) -> ScriptedDeployment:
    return ScriptedDeployment(folder)


def raw(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "input": "hi"} | fields).encode()


@pytest.mark.parametrize(
    ("value", "inputs"),
    [
        ("hi", ("hi",)),
        (["a", "b"], ("a", "b")),
        ([5, 6], ((5, 6),)),
        ([[5], [6, 7]], ((5,), (6, 7))),
        (["a", [5]], ("a", (5,))),
    ],
)
def test_inputs_come_in_every_form(value: Any, inputs: Any) -> None:
    assert parse_embeddings(raw(input=value)) == EmbeddingQuery("m", inputs)


def test_the_other_fields() -> None:
    query = parse_embeddings(raw(encoding_format="base64", dimensions=7, pooling="last", user="me"))
    assert (query.encoding_format, query.dimensions, query.pooling) == ("base64", 7, "last")
    assert parse_embeddings(raw(encoding_format=None, dimensions=None, pooling=None)) == EmbeddingQuery("m", ("hi",))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": ""}, "model"),
        *(({"input": wrong}, "input") for wrong in (None, [], 5, {}, [True], [-1], [1, "a"], ["a", 1], [[]], [["a"]])),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "input"),
        *(({"encoding_format": wrong}, "encoding_format") for wrong in ("int8", 1, ["float"], True)),
        *(({"dimensions": wrong}, "dimensions") for wrong in (0, -1, 1.5, "2", True)),
        *(({"pooling": wrong}, "pooling") for wrong in ("max", 0, ["mean"])),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError, match=param) as caught:
        parse_embeddings(raw(**fields))
    assert caught.value.param == param


def test_vectors_have_length_1_and_zeros_stay() -> None:
    assert normalised([3.0, -4.0]).tolist() == pytest.approx([0.6, -0.8])
    assert normalised([0.0, 0.0]).tolist() == [0.0, 0.0]


async def test_the_official_client_in_both_formats(deployment: ScriptedDeployment) -> None:
    inputs = ["Machines share", "one", "漢🙂"]
    async with client(deployment) as api:
        packed = await api.embeddings.create(model="scripted", input=inputs)  # the client asks for base64 by itself
        plain = await api.embeddings.create(model="scripted", input=inputs, encoding_format="float")
        last = await api.embeddings.create(model="scripted", input=[[7, 4]], extra_body={"pooling": "last"})
    lengths = [len(TextTools.load(deployment.folder).encode(text)) for text in inputs]
    for index, length in enumerate(lengths):
        norm = (length**2 + 9) ** 0.5
        assert packed.data[index].index == plain.data[index].index == index
        assert packed.data[index].embedding == pytest.approx([length / norm, 3 / norm], abs=1e-6)
        assert packed.data[index].embedding == pytest.approx(plain.data[index].embedding, abs=1e-6)
    assert last.data[0].embedding == pytest.approx([0.8, 0.6])
    assert plain.usage.prompt_tokens == plain.usage.total_tokens == sum(lengths) and plain.model == "scripted"


async def test_refusals_name_the_parameter(deployment: ScriptedDeployment) -> None:
    async with client(deployment) as api:
        for fields, param in (
            ({"input": ""}, "input"),
            ({"input": [[5] * 257]}, "input"),
            ({"input": "x" * 100_000}, "input"),
            ({"input": [9999]}, "input"),
            ({"input": "hi", "dimensions": 3}, "dimensions"),
        ):
            with pytest.raises(openai.BadRequestError) as caught:
                await api.embeddings.create(model="scripted", **fields)
            assert caught.value.param == param
        with pytest.raises(openai.NotFoundError):
            await api.embeddings.create(model="absent", input="hi")
        assert (await api.embeddings.create(model="scripted", input="hi", dimensions=2)).data


async def test_too_many_tokens_together(deployment: ScriptedDeployment) -> None:
    deployment.context_tokens = 10**6
    async with client(deployment) as api:
        with pytest.raises(openai.BadRequestError, match="300000") as caught:
            await api.embeddings.create(model="scripted", input=[[5] * 1000] * 301)
    assert caught.value.param == "input" and deployment.embedded == []


async def test_few_inputs_are_asked_at_a_time_and_a_client_that_leaves_ends_them(folder: Path) -> None:
    class Slow(ScriptedDeployment):
        running = most = 0

        async def embed(self, request: EmbeddingRequest) -> tuple[float, ...]:
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                return await super().embed(request)
            finally:
                self.running -= 1
                if self.running == 0:
                    self.aborted.set()

    slow = Slow(folder, pause_s=0.005)
    async with client(slow) as api:
        assert len((await api.embeddings.create(model="scripted", input=["hi"] * 40)).data) == 40
        assert slow.most == AT_ONCE
        slow.pause_s = 60.0
        slow.started.clear()
        slow.aborted.clear()
        asking = asyncio.ensure_future(api.embeddings.create(model="scripted", input=["hi"] * 40))
        await asyncio.wait_for(slow.started.wait(), 5)
        asking.cancel()
        await asyncio.wait_for(slow.aborted.wait(), 5)


async def test_a_full_queue_is_told_once_and_as_it_is(folder: Path) -> None:
    async with serving(ScriptedDeployment(folder, error=QueueFullError())) as server, ClientSession(server.url) as http:
        async with http.post("/v1/embeddings", json={"model": "scripted", "input": ["a", "b", "c"]}) as reply:
            assert reply.status == 429 and (await reply.json())["error"]["code"] == "queue_full"
