"""Requests that fuzzing found, or that are worth keeping: none of them is a failure of the server."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from fuzz.raw_http import check_reply, exchange
from fuzz.raw_requests import Raw
from tests.helpers.scripted_server import serving
from vramancer_cli.serving.connection import Connection
from vramancer_cli.serving.settings import ServerSettings

CORPUS = sorted((Path(__file__).parent / "fuzz_corpus").glob("*.http"))
TAKEN = {"tokens-hours-infinite", "tokens-hours-nan", "tokens-hours-400-digits"}
"""The admin behind this server takes any number of hours; the real one says 409."""
LIVE = b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
async def test_a_hostile_request_is_refused_once_and_by_name(path: Path) -> None:
    async with serving() as server, asyncio.timeout(30):
        reply = await exchange(server.port, Raw(path.stem, path.read_bytes()))
        assert check_reply(reply).startswith("2" if path.stem in TAKEN else "4"), reply
        assert check_reply(await exchange(server.port, Raw("live", LIVE))) == "200"


async def test_a_client_that_went_away_is_no_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Half-closing right behind a bad request once wrote one for each."""
    server = web.Server(lambda request: web.Response())  # type: ignore[arg-type]
    connection = Connection(server, ServerSettings(), asyncio.get_running_loop())
    request = make_mocked_request("GET", "/", writer=SimpleNamespace(output_size=0))
    with caplog.at_level(logging.ERROR):
        assert connection.handle_error(request, 500, ConnectionResetError("the client is gone")).status == 500
        assert not caplog.records
        assert connection.handle_error(request, 500, KeyError("a bug")).status == 500
        assert len(caplog.records) == 1
