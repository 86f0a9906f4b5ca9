from __future__ import annotations

import json
from pathlib import Path

from aiohttp import ClientSession

from tests.helpers.api_trust import keyed, signed
from tests.helpers.scripted_server import ScriptedDeployment, serving

BODY = json.dumps({"model": "scripted", "prompt": "hi", "max_tokens": 2}).encode()


async def test_a_signed_body_arrives_and_any_other_does_not(tmp_path: Path, folder: Path) -> None:
    settings, by_role = keyed(tmp_path, production=True)
    deployment = ScriptedDeployment(folder)
    async with serving(deployment, settings=settings) as server, ClientSession(server.url) as http:
        for sent, status in ((BODY, 200), (BODY.replace(b"hi", b"ho"), 401), (BODY + b" ", 401), (b"", 401)):
            headers = signed(by_role["user"], "POST", "/v1/completions", BODY)
            async with http.post("/v1/completions", data=sent, headers=headers) as reply:
                assert reply.status == status, sent
                if status == 401:
                    assert (await reply.json())["error"]["code"] == "body_not_signed"
    assert len(deployment.requests) == 1


async def test_a_signed_request_without_a_body_must_have_none(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path, production=True)
    async with serving(settings=settings) as server, ClientSession(server.url) as http:
        for sent, status in ((b"", 201), (b"x", 401)):
            headers = signed(by_role["admin"], "POST", "/api/invites?b=1&a=2")
            async with http.post("/api/invites?b=1&a=2", data=sent, headers=headers) as reply:
                assert reply.status == status


async def test_the_raw_path_is_what_was_signed(tmp_path: Path) -> None:
    settings, by_role = keyed(tmp_path, production=True)
    async with serving(settings=settings) as server, ClientSession(server.url) as http:
        for target, status in (("/api/pipeline/status?fresh=false", 200), ("/api/pipeline/status?fresh=true", 401)):
            headers = signed(by_role["user"], "GET", "/api/pipeline/status?fresh=false")
            async with http.get(target, headers=headers) as reply:
                assert reply.status == status
