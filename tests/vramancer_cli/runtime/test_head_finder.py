from __future__ import annotations

import asyncio
import secrets
import time
from pathlib import Path

import pytest

from transport import discovery
from transport.discovery import PREFIX_DIGITS, announce
from transport.types import Address, Peer
from vramancer_cli.runtime.head_finder import HeadFinder
from vramancer_cli.runtime.state_folder import StateFolder

OLD, NEW, GIVEN = Address("10.0.0.1", 5001), Address("10.0.0.2", 5001), Address("192.168.7.7", 5001)
SHORT_S = 0.2


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path / "state")
    folder.save_head_addresses([OLD])
    return folder


@pytest.fixture
def cluster_id() -> str:
    return secrets.token_hex(32)


async def test_what_is_known_is_tried_alone_first_and_without_waiting(folder: StateFolder, cluster_id: str) -> None:
    started_s = time.monotonic()
    assert await HeadFinder(folder, cluster_id, None).find() == (OLD,)
    assert await HeadFinder(folder, cluster_id, GIVEN).find() == (GIVEN,)
    assert time.monotonic() - started_s < 1


async def test_after_that_mdns_is_asked_too_and_only_our_cluster_counts(
    folder: StateFolder, tmp_path: Path, cluster_id: str
) -> None:
    """A machine that knows nothing asks at once."""
    finder, ignorant = (HeadFinder(known, cluster_id, None) for known in (folder, StateFolder(tmp_path / "empty")))
    assert await finder.find() == (OLD,)
    async with await announce(peer(cluster_id, 6001)), await announce(peer(secrets.token_hex(32), 6002)):
        found, found_at_once = await asyncio.gather(finder.find(), ignorant.find())
    assert found[-1] == OLD
    assert {address.port for address in found[:-1]} == {6001}
    assert {address.port for address in found_at_once} == {6001}


def peer(cluster_id: str, port: int) -> Peer:
    name = f"finder-{secrets.token_hex(3)}"
    return Peer(cluster_id[:PREFIX_DIGITS], name, discovery.local_addresses(port), True, 5000, "0.1.0")


async def test_where_nobody_answers_it_goes_on_with_what_is_known(folder: StateFolder, cluster_id: str) -> None:
    finder = HeadFinder(folder, cluster_id, None, SHORT_S)
    assert [await finder.find(), await finder.find()] == [(OLD,), (OLD,)]


async def test_where_the_head_answered_is_remembered_for_this_start_and_the_next(
    folder: StateFolder, cluster_id: str
) -> None:
    finder = HeadFinder(folder, cluster_id, GIVEN)
    await finder.find()
    finder.remember([NEW, OLD])
    assert await finder.find() == (NEW, OLD)
    assert await HeadFinder(folder, cluster_id, None).find() == (NEW, OLD)
