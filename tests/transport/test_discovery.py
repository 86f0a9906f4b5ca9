from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from typing import Any

import pytest
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from transport import discovery
from transport.types import Address, Peer


def peer(name: str = "home", prefix: str = "") -> Peer:
    return Peer(prefix or secrets.token_hex(8), name, discovery.local_addresses(5001), True, 5000, "0.1.0")


async def seen_until(*prefixes: str) -> list[Peer]:
    """All that is seen until these are; answers may take a second or two (RFC 6762, 6)."""
    seen: list[Peer] = []
    async with contextlib.aclosing(discovery.browse(15)) as peers:
        async for found in peers:
            seen.append(found)
            if set(prefixes) <= {peer.cluster_id_prefix for peer in seen}:
                break
    return seen


async def test_a_cluster_is_seen_with_all_it_says_and_gone_after_close() -> None:
    said = peer(f"Ada's tower {secrets.token_hex(2)}")
    async with await discovery.announce(said), contextlib.aclosing(discovery.browse(10)) as peers:
        heard = await anext(seen async for seen in peers if seen.cluster_id_prefix == said.cluster_id_prefix)
    assert heard.name == said.name
    assert (heard.accepts_pairing, heard.api_port, heard.version) == (True, 5000, "0.1.0")
    assert set(heard.addresses) == {address for address in said.addresses if not address.host.startswith("fe80")}
    assert said.cluster_id_prefix not in {seen.cluster_id_prefix for seen in await discovery.find(0.5)}


async def test_two_clusters_of_one_name_are_both_seen() -> None:
    name = f"twin {secrets.token_hex(2)}"
    first, second = peer(name), peer(name)
    async with await discovery.announce(first), await discovery.announce(second):
        found = await seen_until(first.cluster_id_prefix, second.cluster_id_prefix)
    seen = {peer.cluster_id_prefix: peer.name for peer in found}
    assert seen[first.cluster_id_prefix] == name
    assert seen[second.cluster_id_prefix] == name


async def test_stopping_early_leaves_no_task_and_no_thread() -> None:
    tasks, threads = asyncio.all_tasks(), threading.active_count()
    began = time.monotonic()
    async with await discovery.announce(peer()) as announcement:
        async with contextlib.aclosing(discovery.browse(30)) as peers:
            await anext(peers)
        await announcement.close()
    assert time.monotonic() - began < 8
    await asyncio.sleep(0.05)
    assert asyncio.all_tasks() == tasks
    assert threading.active_count() == threads


async def test_nobody_there_is_an_empty_answer_in_time() -> None:
    began = time.monotonic()
    assert isinstance(await discovery.find(0.2), tuple)
    assert time.monotonic() - began < 2


def record(
    name: str = "home", port: int = 5001, addresses: tuple[str, ...] = ("10.0.0.7",), **changed: Any
) -> AsyncServiceInfo:
    txt: dict[str, Any] = {"v": "0.1.0", "cid": "0123456789abcdef", "pair": "1", "api": "5000"} | changed
    properties = {key: value for key, value in txt.items() if value is not None}
    return AsyncServiceInfo(
        discovery.SERVICE,
        f"{name}.{discovery.SERVICE}",
        port=port,
        properties=properties,
        parsed_addresses=list(addresses),
    )


def test_a_well_formed_record_is_a_peer() -> None:
    assert discovery._read_record(record()) == Peer(
        "0123456789abcdef", "home", (Address("10.0.0.7", 5001),), True, 5000, "0.1.0"
    )


MALFORMED = {
    "no cid": {"cid": None},
    "short cid": {"cid": "0123"},
    "cid in capitals": {"cid": "0123456789ABCDEF"},
    "cid of bytes": {"cid": b"\xff" * 16},
    "no version": {"v": None},
    "endless version": {"v": "9" * 200},
    "escape codes in the version": {"v": "\x1b[31m1"},
    "pair is neither": {"pair": "yes"},
    "api is no port": {"api": "70000"},
    "api is negative": {"api": "-1"},
    "api is not ASCII": {"api": "٣"},
    "no port": {"port": 0},
    "no addresses": {"addresses": ()},
    "only an address without its zone": {"addresses": ("fe80::1",)},
    "no visible name": {"name": "\x85\u202e"},
}


@pytest.mark.parametrize("changed", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_record_is_passed_over(changed: dict[str, Any]) -> None:
    assert discovery._read_record(record(**changed)) is None


def test_escape_codes_in_a_name_do_not_reach_the_terminal() -> None:
    seen = discovery._read_record(record("\x9b2Jevil\u202e"))
    assert seen is not None and seen.name == "2Jevil"


def test_addresses_are_bounded_and_best_first() -> None:
    many = tuple(f"10.0.0.{number}" for number in range(1, 40))
    seen = discovery._read_record(record(addresses=("127.0.0.1", "fd00::1", *many)))
    assert seen is not None and len(seen.addresses) == discovery.ADDRESSES
    assert seen.addresses[0].host == "10.0.0.1"


def test_ones_own_best_address_is_the_one_that_leads_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"tun0": ["10.8.0.2"], "eth0": ["192.168.1.20", "fd00::2", "fe80::1%eth0"], "lo": ["127.0.0.1"]}
    monkeypatch.setattr(discovery, "_good_interfaces", lambda: found)
    monkeypatch.setattr(discovery, "_outgoing_ip", lambda: "192.168.1.20")
    hosts = [address.host for address in discovery.local_addresses(5001)]
    assert hosts == ["192.168.1.20", "10.8.0.2", "fd00::2", "fe80::1%eth0"]
    monkeypatch.setattr(discovery, "_outgoing_ip", lambda: None)
    assert discovery.local_addresses(5001)[0].host == "10.8.0.2"


def test_the_address_that_leads_out_is_ones_own() -> None:
    assert discovery._outgoing_ip() in {None} | {ip for ips in discovery._good_interfaces().values() for ip in ips}


async def test_a_malformed_announcement_on_the_wire_does_not_stop_the_search() -> None:
    said, bad = peer(), record(f"bad {secrets.token_hex(2)}", cid="nothing")
    async with AsyncZeroconf() as mdns:
        await (await mdns.async_register_service(bad))
        async with await discovery.announce(said):
            seen = await seen_until(said.cluster_id_prefix)
    assert said.cluster_id_prefix in {found.cluster_id_prefix for found in seen}
    assert not [found for found in seen if found.name.startswith("bad")]


def test_an_announced_name_fits_a_dns_label() -> None:
    info = discovery._record(peer("é" * 100 + ".local"))
    label = info.name.removesuffix(f".{discovery.SERVICE}")
    assert "." not in label and len(label.encode()) <= 63
    seen = discovery._read_record(info)
    assert seen is not None and seen.name.startswith("é" * 20) and "(" not in seen.name
