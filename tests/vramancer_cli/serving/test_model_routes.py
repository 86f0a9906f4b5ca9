from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from aiohttp import ClientSession

from tests.helpers.scripted_server import FixedAdmin, ScriptedDeployment, cluster_status, serving


async def test_every_route_says_alike_what_is_there_and_what_is_not(folder: Path) -> None:
    asks = [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/embeddings", {"input": "hi"}),
    ]
    waiting = FixedAdmin(replace(cluster_status(), state="waiting", reason="0.4 GiB are missing."))
    async with serving(ScriptedDeployment(folder)) as server, serving(admin=waiting) as empty:
        async with ClientSession() as http:
            for path, fields in asks:
                for url, model, status in (
                    (server.url, "absent", 404),
                    (empty.url, "any", 503),
                    (server.url, "scripted", 200),
                ):
                    async with http.post(url + path, json={"model": model} | fields) as reply:
                        assert reply.status == status
                        if status != 200:
                            error = (await reply.json())["error"]
                            assert error["code"] == {404: "model_not_found", 503: "not_ready"}[status]
