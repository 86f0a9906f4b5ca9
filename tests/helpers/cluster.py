"""Nodes of a cluster made for a test: real certificates, real endpoints on loopback, and sinks that remember."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from transport import identity
from transport.contracts import ControlLink, Received
from transport.endpoint import Endpoint
from transport.errors import TransportError
from transport.identity import ClusterAuthority, Credentials
from transport.messages import PROTOCOL_MAJOR, PROTOCOL_MINOR, Hello
from transport.types import Address, NodeId, Versions

VERSIONS = Versions("0.1.0", "2.13.0", "5.23.0")


def make_credentials(authority: ClusterAuthority, name: str) -> Credentials:
    """A worker's credentials, without pairing; `head` is a node of nobody."""
    key = identity.make_key()
    certificate = identity.to_pem(authority.issue(identity.make_request(key), time.time()))
    node = identity.node_id_of_key(key)
    return Credentials(node, name, authority.name, "0" * 32, key, certificate, authority.certificate_pem)


def hello_of(credentials: Credentials) -> Hello:
    return Hello(PROTOCOL_MAJOR, PROTOCOL_MINOR, VERSIONS, credentials.node_id, credentials.name, "control")


@dataclass
class Memory:
    """What came in: a DataSink and a ControlHandler that answers every message with itself."""

    links: list[ControlLink] = field(default_factory=list)
    frames: list[tuple[NodeId, Received]] = field(default_factory=list)
    closed: list[tuple[NodeId, TransportError | None]] = field(default_factory=list)

    async def on_control(self, link: ControlLink) -> None:
        self.links.append(link)
        while True:
            await link.send(await link.receive())

    def on_frame(self, sender: NodeId, received: Received) -> None:
        self.frames.append((sender, received))

    def on_closed(self, sender: NodeId, error: TransportError | None) -> None:
        self.closed.append((sender, error))


@dataclass
class TestNode:
    __test__ = False
    credentials: Credentials
    endpoint: Endpoint
    memory: Memory

    @property
    def id(self) -> NodeId:
        return self.credentials.node_id

    @property
    def addresses(self) -> list[Address]:
        return [Address("127.0.0.1", self.endpoint.port)]


@asynccontextmanager
async def open_node(credentials: Credentials, hello: Hello | None = None, **settings: Any) -> AsyncIterator[TestNode]:
    memory = Memory()
    settings = {"host": "127.0.0.1", "port": 0, "deadline_s": 5.0, "connect_s": 3.0} | settings
    endpoint = await Endpoint.open(
        credentials, hello or hello_of(credentials), on_control=memory.on_control, sink=memory, **settings
    )
    try:
        yield TestNode(credentials, endpoint, memory)
    finally:
        await endpoint.close()


async def until(condition: Any, timeout_s: float = 5.0) -> None:
    """Waits until `condition()` holds; TimeoutError says that it never did."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # conditions of other threads have no event to wait for
            await asyncio.sleep(0.005)
