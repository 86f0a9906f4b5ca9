"""/openapi.json describes the routes that there are, all of them, and who may call them."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from aiohttp import ClientSession

from tests.helpers.scripted_server import ScriptedDeployment, serving
from vramancer_cli.models.sampling import TOP_LOGPROBS_LIMIT
from vramancer_cli.serving.app import KEY_HEADERS, ROUTES
from vramancer_cli.serving.embeddings import MAX_INPUTS, MAX_TOKENS
from vramancer_cli.serving.idempotency import HEADER
from vramancer_cli.serving.openai import MAX_CHOICES, MAX_STOP_CHARACTERS, MAX_STOPS, ROLES
from vramancer_cli.serving.sampling_params import (
    LEAST_REPETITION_PENALTY,
    MAX_BIASES,
    MAX_STOP_TOKEN_IDS,
    MAX_TOP_K,
    MOST_BIAS,
    MOST_PENALTY,
    MOST_REPETITION_PENALTY,
)
from vramancer_cli.serving.signing import SCHEME

HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture
def described() -> dict[str, Any]:
    return json.loads((resources.files("vramancer_cli.serving") / "page" / "openapi.json").read_text(encoding="utf-8"))


def operations(described: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method.upper(), path): op for path, item in described["paths"].items() for method, op in item.items()}


def test_it_has_every_route_with_its_role_and_no_other(described: dict[str, Any]) -> None:
    routes = {(method, re.sub(r":[^}]*}", "}", path)): role for method, path, role, _ in ROUTES}
    assert {place: op["x-role"] for place, op in operations(described).items()} == routes


def test_what_is_open_asks_for_no_key_and_everything_else_for_one_of_the_four_ways(described: dict[str, Any]) -> None:
    schemes = described["components"]["securitySchemes"]
    for op in operations(described).values():
        assert op["security"] == ([] if op["x-role"] == "open" else [{name: []} for name in schemes])
    headers = {scheme["name"] for scheme in schemes.values() if scheme["type"] == "apiKey"}
    assert headers == set(KEY_HEADERS)
    assert {scheme["scheme"] for scheme in schemes.values() if scheme["type"] == "http"} == {"bearer", SCHEME}


def test_every_reference_leads_somewhere_and_every_part_is_used(described: dict[str, Any]) -> None:
    used = set(re.findall(r'"\$ref": "#/components/(\w+/\w+)"', json.dumps(described)))
    parts = {
        f"{kind}/{name}" for kind in ("schemas", "responses", "parameters") for name in described["components"][kind]
    }
    assert used == parts


def test_its_bounds_are_those_of_the_parser(described: dict[str, Any]) -> None:
    schemas = described["components"]["schemas"]
    assert set(schemas["ChatMessage"]["properties"]["role"]["enum"]) == ROLES
    _, one, several = schemas["ChatRequest"]["properties"]["stop"]["oneOf"]
    assert one["maxLength"] == several["items"]["maxLength"] == MAX_STOP_CHARACTERS and several["maxItems"] == MAX_STOPS
    for schema, low, high in (
        ("TopK", -1, MAX_TOP_K),
        ("MinP", 0, 1),
        ("RepetitionPenalty", LEAST_REPETITION_PENALTY, MOST_REPETITION_PENALTY),
        ("Penalty", -MOST_PENALTY, MOST_PENALTY),
        ("ChoiceCount", 1, MAX_CHOICES),
        ("BestOf", 1, MAX_CHOICES),
    ):
        assert (schemas[schema]["minimum"], schemas[schema]["maximum"]) == (low, high)
    biases = schemas["LogitBias"]
    assert (biases["maxProperties"], biases["additionalProperties"]["maximum"]) == (MAX_BIASES, MOST_BIAS)
    assert schemas["StopTokenIds"]["maxItems"] == MAX_STOP_TOKEN_IDS
    assert schemas["ChatRequest"]["properties"]["top_logprobs"]["maximum"] == TOP_LOGPROBS_LIMIT
    assert schemas["CompletionRequest"]["properties"]["logprobs"]["maximum"] == TOP_LOGPROBS_LIMIT
    _, inputs = schemas["EmbeddingRequest"]["properties"]["input"]["anyOf"]
    assert inputs["maxItems"] == MAX_INPUTS
    assert f"{MAX_TOKENS} tokens" in schemas["EmbeddingRequest"]["properties"]["input"]["description"]


def test_answers_take_an_idempotency_key(described: dict[str, Any]) -> None:
    header = described["components"]["parameters"]["IdempotencyKey"]
    assert header["name"] == HEADER
    takes = {path for (_, path), op in operations(described).items() if "parameters" in op and "{" not in path}
    assert {"/v1/chat/completions", "/v1/completions"} <= takes


async def test_it_is_served_to_everyone(described: dict[str, Any]) -> None:
    async with serving() as server, ClientSession(server.url) as http, http.get("/openapi.json") as reply:
        assert reply.status == 200 and await reply.json() == described


@pytest.mark.parametrize(
    ("path", "fields", "schema"),
    [
        ("/v1/chat/completions", {"messages": HELLO}, "ChatCompletion"),
        ("/v1/chat/completions", {"messages": HELLO, "n": 2, "logprobs": True, "top_logprobs": 2}, "ChatCompletion"),
        ("/v1/completions", {"prompt": "hi", "n": 2}, "Completion"),
        ("/v1/completions", {"prompt": "hi there", "echo": True, "logprobs": 1, "max_tokens": 0}, "Completion"),
        ("/v1/embeddings", {"input": ["a", [5]]}, "EmbeddingList"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}, "EmbeddingList"),
    ],
)
async def test_replies_are_what_it_says(
    described: dict[str, Any], folder: Path, path: str, fields: dict[str, Any], schema: str
) -> None:
    async with serving(ScriptedDeployment(folder)) as server, ClientSession(server.url) as http:
        async with http.post(path, json={"model": "scripted"} | fields) as reply:
            assert reply.status == 200
            told = await reply.json()
    whole = {"$ref": f"#/components/schemas/{schema}", "components": described["components"]}
    jsonschema_rs.validator_for(whole).validate(told)
    told.popitem()
    with pytest.raises(jsonschema_rs.ValidationError):
        jsonschema_rs.validator_for(whole).validate(told)
