"""A sample of what `make fuzz` sends to a real server process, and that a bad reply is noticed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fuzz import api, raw_http, server
from fuzz.findings import BrokenPromiseError, Tally
from fuzz.raw_requests import KINDS, make_raw
from fuzz.server import Footprint

SEED = 20261121


def test_a_sample_of_requests_finds_nothing(tmp_path: Path) -> None:
    """Raw bytes, then schemathesis after /openapi.json; the server stays what it was."""
    tally = Tally("requests", SEED)
    with server.running() as running:
        before = running.footprint()
        asyncio.run(raw_http.run(running, 200, SEED, tally, tmp_path, progress=lambda _: None))
        done = api.run_round(running, SEED, 3, phases="fuzzing")
        running.require_alive()
        running.require_quiet()
        after = running.footprint()
    assert not tally.findings, tally.findings[0].what
    assert not done.failed, done.output
    assert done.statuses.total() > 20 and done.statuses["200"] and done.statuses["400"]
    assert after.fds <= before.fds + 40


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 500 Internal Server Error\r\n\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 502 Bad Gateway\r\n\r\n",
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\n\r\nno",
        b'HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n\r\n{"error": "no"}',
        b"Traceback (most recent call last)",
    ],
)
def test_a_bad_reply_is_noticed(reply: bytes) -> None:
    with pytest.raises(BrokenPromiseError):
        raw_http.check_reply(reply)


def test_what_may_come_back() -> None:
    refused = b"HTTP/1.1 503 x\r\nRetry-After: 5\r\nContent-Type: application/json\r\n\r\n"
    refused += b'{"error":{"message":"m","type":"t","param":null,"code":null}}'
    replies = (b"", b"\x15\x03\x03\x00\x02\x02\x28", b"HTTP/1.1 200 OK\r\n\r\n", refused)
    assert [raw_http.check_reply(reply) for reply in replies] == ["closed", "TLS alert", "200", "503"]


def test_raw_requests_follow_from_seed_and_number_and_reach_every_kind() -> None:
    assert make_raw(SEED, 3, "m") == make_raw(SEED, 3, "m")
    assert len({make_raw(SEED, number, "m").kind for number in range(1500)}) == len(KINDS)


def test_more_memory_or_descriptors_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SETTLE_S", 0.0)
    before, kept = Footprint(100, 10, 3), server.KEPT_BYTES
    fine_ones = {Footprint(109 + kept, 12, 9): True, Footprint(111 + kept, 10, 3): False, Footprint(100, 40, 3): False}
    for after, fine in fine_ones.items():
        monkeypatch.setattr(server.Server, "footprint", lambda _, after=after: after)
        running = server.Server("", 0, "", None)  # type: ignore[arg-type]
        if fine:
            assert running.require_flat(before) == after
        else:
            with pytest.raises(BrokenPromiseError):
                running.require_flat(before)
