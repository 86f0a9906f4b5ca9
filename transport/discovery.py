"""Meeting over mDNS (RFC 6762, RFC 6763): a master announces its cluster, a machine that wants to join looks.

Where no multicast passes, `beacon` broadcasts beside it. Only zeroconf talks here, and everything heard is a rumour:
a `Peer`, never a node. Nothing secret is said, and no hash of anything secret. Never links, certificates or torch
here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import re
import socket
from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Any, Final, Self

import msgspec
import psutil
from zeroconf import BadTypeInNameException, DNSQuestionType, InterfaceChoice, IPVersion, ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from transport.beacon import Beacon, Question, Said
from transport.types import Address, Peer

SERVICE: Final = "_vramancer._tcp.local."
PEERS: Final = 64
ADDRESSES: Final = 16
RESOLVE_S: Final = 2.0
PREFIX_DIGITS: Final = 16
_LABEL_BYTES: Final = 63
_MARK_DIGITS: Final = 8
_TEXT_LIMIT: Final = 32
_PREFIX = re.compile(rf"[0-9a-f]{{{PREFIX_DIGITS}}}")
_NOT_GOOD = re.compile(r"docker|br-|virbr|awdl|llw", re.IGNORECASE)
"""Interfaces of bridges to one's own containers, and of Apple's peer-to-peer Wi-Fi: no other machine lives there."""

logging.getLogger("zeroconf").setLevel(logging.ERROR)
# It warns with a traceback of every interface that cannot send multicast just now; the others still work.


# --- announcing ---------------------------------------------------------------------------------------------


class Announcement:
    """A cluster's record on the network, from `announce` until `close` withdraws it."""

    def __init__(self, mdns: AsyncZeroconf, info: AsyncServiceInfo, beacon: Beacon | None) -> None:
        self._mdns = mdns
        self._info = info
        self._beacon = beacon

    async def close(self) -> None:
        """Withdraw the record, so that it is gone from every cache at once. May be called twice."""
        mdns = self._mdns
        if self._beacon is not None:
            self._beacon.close()
        if not mdns.zeroconf.done:
            await (await mdns.async_unregister_service(self._info))  # pyright: ignore[reportUnknownMemberType] bare Awaitable
            await mdns.async_close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def announce(peer: Peer) -> Announcement:
    """Say on every good interface, loopback too, that `peer` is here; use it as `async with await announce(...)`.

    All of the peer's addresses have the node port's number; names among them are left out.
    """
    mdns = _open_mdns()
    try:
        info = _record(peer)
        await (await mdns.async_register_service(info, cooperating_responders=True))  # pyright: ignore[reportUnknownMemberType]
    except BaseException:
        await mdns.async_close()
        raise
    return Announcement(mdns, info, await Beacon.open(_said(peer)))


def local_addresses(port: int) -> tuple[Address, ...]:
    """Where other machines may reach this one, best first; loopback only when there is nothing else.

    Best is the address that this machine itself would call others from: of a VPN's and the house's, usually the latter.
    """
    found = [ip for ips in _good_interfaces().values() for ip in ips]
    outside = [ip for ip in found if not _is_loopback(ip)]
    outgoing = _outgoing_ip()
    best_first = sorted(outside or found, key=lambda ip: (ip != outgoing, _rank(ip)))
    return tuple(Address(ip, port) for ip in best_first[:ADDRESSES])


def _outgoing_ip() -> str | None:
    """The default route's IPv4 address. Connecting a datagram socket sends nothing."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # RFC 5737: nobody's address
        return str(probe.getsockname()[0])
    return None


def _record(peer: Peer) -> AsyncServiceInfo:
    txt = {
        "v": peer.version,
        "cid": peer.cluster_id_prefix,
        "pair": "1" if peer.accepts_pairing else "0",
        "api": str(peer.api_port),
    }
    hosts = [address.host.split("%")[0] for address in peer.addresses]
    return AsyncServiceInfo(
        SERVICE,
        f"{_label(peer.name, peer.cluster_id_prefix)}.{SERVICE}",
        port=peer.addresses[0].port,
        properties=txt,
        server=f"vramancer-{peer.cluster_id_prefix}.local.",
        addresses=[_packed(host) for host in hosts if _is_literal(host)],
    )


def _said(peer: Peer) -> Said:
    """The same by broadcast."""
    hosts = tuple(host for address in peer.addresses if _is_literal(host := address.host.split("%")[0]))
    pair, api = "1" if peer.accepts_pairing else "0", str(peer.api_port)
    return Said(peer.version, peer.cluster_id_prefix, peer.name, pair, api, peer.addresses[0].port, hosts)


def _label(name: str, prefix: str) -> str:
    """A DNS label, at most 63 bytes of UTF-8 without dots, that no other cluster has: it needs no probing."""
    mark = _mark(prefix)
    return name.replace(".", "-").encode()[: _LABEL_BYTES - len(mark)].decode(errors="ignore") + mark


def _mark(prefix: str) -> str:
    return f" ({prefix[:_MARK_DIGITS]})"


# --- looking ------------------------------------------------------------------------------------------------


async def find(timeout_s: float) -> tuple[Peer, ...]:
    """All clusters seen within `timeout_s`."""
    async with contextlib.aclosing(browse(timeout_s)) as peers:
        return tuple([peer async for peer in peers])


async def browse(timeout_s: float) -> AsyncGenerator[Peer, None]:
    """Clusters as they appear, each once, at most 64, for `timeout_s`; malformed records are passed over.

    Close it (contextlib.aclosing) to stop early: no socket or task is left.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    async with _Looking() as peers:
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    peer = await peers.get()
            except TimeoutError:
                return
            yield peer


class _Looking:
    """A browser and one resolving task per instance name seen; entering gives the queue of peers."""

    def __init__(self) -> None:
        self._peers: asyncio.Queue[Peer] = asyncio.Queue(PEERS)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._seen: set[str] = set()
        self._question: Question | None = None

    async def __aenter__(self) -> asyncio.Queue[Peer]:
        self._mdns = _open_mdns()
        # Answers by multicast: a unicast one may reach another program's socket on the same port of this machine.
        self._browser = AsyncServiceBrowser(
            self._mdns.zeroconf, SERVICE, handlers=[self._on_change], question_type=DNSQuestionType.QM
        )
        self._question = await Question.open(self._on_answer)
        return self._peers

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._question is not None:
            self._question.close()
        await self._browser.async_cancel()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._mdns.async_close()

    def _on_change(self, name: str, state_change: ServiceStateChange, **_: Any) -> None:
        if state_change is ServiceStateChange.Added and name not in self._tasks and len(self._tasks) < PEERS:
            self._tasks[name] = asyncio.create_task(self._resolve(name))

    async def _resolve(self, name: str) -> None:
        try:
            info = AsyncServiceInfo(SERVICE, name)
        except BadTypeInNameException:
            return
        if await info.async_request(self._mdns.zeroconf, RESOLVE_S * 1000, question_type=DNSQuestionType.QM):
            self._found(_read_record(info))

    def _on_answer(self, said: Said, host: str) -> None:
        self._found(_read_answer(said, host))

    def _found(self, peer: Peer | None) -> None:
        """Each cluster once, whichever way it was heard of first, and so many of them."""
        if peer is not None and peer.cluster_id_prefix not in self._seen and len(self._seen) < PEERS:
            self._seen.add(peer.cluster_id_prefix)
            self._peers.put_nowait(peer)


def _read_record(info: AsyncServiceInfo) -> Peer | None:
    """None for anything that is not well-formed to the letter: whoever is on the network may have sent it."""
    txt = {key: _text(value) for key, value in info.properties.items()}
    version, prefix, pair, api = (txt.get(key, "") for key in (b"v", b"cid", b"pair", b"api"))
    label = info.name.removesuffix(f".{SERVICE}").removesuffix(_mark(prefix))
    hosts = sorted(filter(_is_dialable, set(info.parsed_scoped_addresses())), key=_rank)
    return _well_formed(Said(version, prefix, label, pair, api, info.port or 0, tuple(hosts)))


def _read_answer(said: Said, host: str) -> Peer | None:
    """As `_read_record`. Where the answer came from is certainly a way to it, and the best one if it said so itself."""
    texts = {field: _text(getattr(said, field).encode()) for field in ("version", "prefix", "pair", "api")}
    hosts = [one for one in said.hosts[:ADDRESSES] if _is_literal(one) and _is_dialable(one)]
    best_first = dict.fromkeys((host, *hosts) if host in hosts or not _is_loopback(host) else (*hosts, host))
    return _well_formed(msgspec.structs.replace(said, **texts, hosts=tuple(best_first)))


def _well_formed(said: Said) -> Peer | None:
    name = "".join(c for c in said.name[: 4 * _LABEL_BYTES] if c.isprintable()).strip()
    sound = name and said.version and _PREFIX.fullmatch(said.prefix) and said.pair in ("0", "1")
    if not (sound and _is_port(said.api) and _is_port(str(said.port)) and said.port and said.hosts):
        return None
    addresses = tuple(Address(host, said.port) for host in said.hosts[:ADDRESSES])
    return Peer(said.prefix, name, addresses, said.pair == "1", int(said.api), said.version)


def _text(value: bytes | None) -> str:
    """A TXT value as printable ASCII of bearable length, else empty."""
    text = (value or b"").decode("ascii", errors="replace")
    return text if text.isascii() and text.isprintable() and len(text) <= _TEXT_LIMIT else ""


def _is_port(text: str) -> bool:
    return text.isdecimal() and len(text) <= 5 and int(text) < 65536


# --- interfaces ---------------------------------------------------------------------------------------------


def _open_mdns() -> AsyncZeroconf:
    """On one IPv4 and one IPv6 address per good interface; IPv4 by itself where the system has no IPv6."""
    interfaces = [ip for ips in _good_interfaces().values() for ip in _one_of_each(ips)]
    try:
        return AsyncZeroconf(interfaces=interfaces, ip_version=IPVersion.All)
    except (OSError, RuntimeError):
        return AsyncZeroconf(interfaces=InterfaceChoice.All, ip_version=IPVersion.V4Only)


def _good_interfaces() -> dict[str, list[str]]:
    """Addresses, IPv6 with its zone, by the name of each interface that is up and leads to other machines."""
    up = {name for name, facts in psutil.net_if_stats().items() if facts.isup and not _NOT_GOOD.match(name)}
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [found.address for found in addresses if found.family in families]
        for name, addresses in psutil.net_if_addrs().items()
        if name in up
    }


def _one_of_each(ips: Sequence[str]) -> list[str]:
    """mDNS speaks to the link once per IP version; over IPv6 from the link-local
    address, and not on loopback: many systems have no IPv6 multicast there."""
    ranked = sorted(ips, key=_rank)
    return [ip for ip in ranked if ":" not in ip][:1] + [ip for ip in ranked if ":" in ip and not _is_loopback(ip)][-1:]


def _rank(ip: str) -> tuple[int, str]:
    """Best to dial first: IPv4, IPv6, link-local (it needs a zone), loopback."""
    address = ipaddress.ip_address(ip.split("%")[0])
    return 3 * address.is_loopback + 2 * address.is_link_local + (address.version == 6), ip


def _is_loopback(ip: str) -> bool:
    return ipaddress.ip_address(ip.split("%")[0]).is_loopback


def _is_dialable(ip: str) -> bool:
    """An IPv6 link-local address leads nowhere without its zone."""
    return "%" in ip or not (":" in ip and ipaddress.ip_address(ip).is_link_local)


def _is_literal(host: str) -> bool:
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


def _packed(host: str) -> bytes:
    return ipaddress.ip_address(host).packed
