"""The HTTP API of a real server process under attack: raw bytes first, then schemathesis, then a look at the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from fuzz import api, raw_http
from fuzz.findings import CRASHES, BrokenPromiseError, Finding, Tally
from fuzz.raw_requests import make_raw
from fuzz.server import Footprint, Server, running

WARM_UP: Final = 0.05
"""The share of the requests after which the server's memory is what it stays."""
EXAMPLES: Final = 120
ONLY = Literal["raw", "api", "both"]
HOW_TO_INSTALL: Final = "schemathesis is not installed: pip install --constraint constraints.txt '.[dev]'"


def run(
    count: int, seed: int, only: ONLY = "both", crashes: Path = CRASHES, progress: Callable[[str], None] = print
) -> Tally:
    """At least so many requests, half of them of each kind."""
    tally = Tally("requests", seed)
    raw_count = {"raw": count, "api": 0, "both": count // 2}[only]
    with running() as server:
        warm = max(1, int(count * WARM_UP))
        asyncio.run(raw_http.run(server, warm, seed, tally, crashes, raw_count, progress))
        if only != "raw":
            _api_round(server, seed, min(EXAMPLES, max(2, warm // 20)), tally, crashes)
        before = server.footprint()
        asyncio.run(raw_http.run(server, raw_count, seed, tally, crashes, 0, progress))
        rounds = 0
        while only != "raw" and tally.done < count and not _too_many(tally):
            rounds += 1
            _api_round(server, seed + rounds, _examples_for(count - tally.done), tally, crashes)
            progress(f"  requests {tally.done:,}, {server.footprint()}")
        _look(server, before, tally, crashes, progress)
    return tally


def _too_many(tally: Tally) -> bool:
    return len(tally.findings) >= 50


def _examples_for(left: int) -> int:
    """A round costs some 400 requests, and some 20 more for each example."""
    return max(2, min(EXAMPLES, (left - 400) // 20))


def _api_round(server: Server, seed: int, examples: int, tally: Tally, crashes: Path) -> None:
    if not api.is_here():
        tally.add(Finding(HOW_TO_INSTALL, f"requests:{seed}:api", ""), crashes)
        return
    done = api.run_round(server, seed, examples)
    tally.done += done.statuses.total()
    tally.kinds += type(tally.kinds)({f"api {status}": number for status, number in done.statuses.items()})
    if done.failed:
        tally.add(
            Finding(done.output[-12_000:] + "\nschemathesis found something", f"requests:{seed}:api", done.command),
            crashes,
        )


def _look(server: Server, before: Footprint, tally: Tally, crashes: Path, progress: Callable[[str], None]) -> None:
    """Alive, not larger, nothing left open, nothing unforeseen in its log."""
    looks: tuple[Callable[[], object], ...] = (
        server.require_alive,
        lambda: server.require_flat(before),
        server.require_quiet,
    )
    for look in looks:
        try:
            look()
        except BrokenPromiseError as error:
            tally.add(
                Finding(str(error), f"requests:{tally.seed}:server", f"python -m fuzz requests --seed {tally.seed}"),
                crashes,
            )
    progress(f"  the server before: {before}; after: {server.footprint()}")


def replay(seed: int, number: int) -> bytes:
    """What the server answers to one raw request."""
    with running() as server:
        raw = make_raw(seed, number, server.model)
        reply = asyncio.run(raw_http.exchange(server.port, raw))
        print(raw.data[:2000], "\n\n", reply[:4000], "\n\n", server.node.output[-1500:])
        raw_http.check_reply(reply)
        return reply
