"""The workers' control links, as the head has them: who is let in, what is told to them, and what comes back.

What a worker says becomes a cluster event; what to do about it is the coordinator's business. Never data links, torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from transport.contracts import ControlLink
from transport.errors import LinkClosedError, RemoteProtocolError, TransportError
from transport.messages import (
    Assign,
    AssignRefused,
    Join,
    LoadProgress,
    Message,
    Ping,
    Pong,
    Refused,
    Release,
    StageFailed,
    StageReady,
    StatusShare,
    Welcome,
)
from transport.types import Address, NodeFacts, NodeId
from vramancer_cli.cluster import events
from vramancer_cli.runtime.tasks import task_group
from vramancer_cli.telemetry import log

HEARTBEAT_S = 1.0
JOIN_DEADLINE_S = 10.0
FRESH_DEADLINE_S = 1.0
MAX_NODES = 256
OUTBOX_BOUND = 64

Note = Callable[[events.Event], None]


@dataclass(slots=True)
class _Member:
    """One worker's control link. `ended` is set once it has been lost; `epoch` is what it was last told to hold."""

    name: str
    control: ControlLink
    outbox: asyncio.Queue[Message] = field(default_factory=lambda: asyncio.Queue[Message](OUTBOX_BOUND))
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""
    epoch: int | None = None
    ping_number: int = 0
    pinged_at: float = 0.0
    pong_number: int = 0


class Members:
    """All methods on the event loop. `note` gets an event for everything that happens to a worker."""

    def __init__(self, facts: NodeFacts, cluster: str, note: Note) -> None:
        self._facts = facts
        self._cluster = cluster
        self._note = note
        self._log = log.get("members")
        self._loop = asyncio.get_running_loop()
        self._members: dict[NodeId, _Member] = {}
        self._answered = asyncio.Event()  # somebody has answered a ping, or never will

    # --- a link's life ------------------------------------------------------------------------------------------

    async def accept(self, link: ControlLink) -> None:
        """A control link came in (a ControlHandler): its whole life, and every task of it."""
        try:
            async with asyncio.timeout(JOIN_DEADLINE_S):
                join = await link.receive()
        except TimeoutError:
            return
        if not isinstance(join, Join) or join.facts.node_id != link.hello.node:
            raise RemoteProtocolError("A control link must begin with a Join of its own node.")
        refusal = self._refusal(join.facts)
        if refusal is not None:
            self._log.warning("node refused", name=join.facts.name, reason=refusal.reason)
            await link.send(refusal)
            return
        await self._serve(link, join.facts)

    def _refusal(self, facts: NodeFacts) -> Refused | None:
        own = self._facts.versions
        if (facts.versions.torch, facts.versions.transformers) != (own.torch, own.transformers):
            return Refused(
                f"'{facts.name}' has torch {facts.versions.torch} and transformers {facts.versions.transformers}; "
                f"the master has {own.torch} and {own.transformers}.",
                "Versions that compute differently cannot share a model: install the same VRAMancer on both.",
            )
        if len(self._members) >= MAX_NODES and facts.node_id not in self._members:
            return Refused(f"The cluster is full ({MAX_NODES} nodes).", "Remove a node first.")
        return None

    async def _serve(self, link: ControlLink, facts: NodeFacts) -> None:
        node = facts.node_id
        self.lose(node, "it joined again")
        member = self._members[node] = _Member(facts.name, link)
        try:
            await link.send(Welcome(self._cluster, self._facts.node_id, self._facts.addresses, HEARTBEAT_S))
            self._joined(link, member, facts)
            async with task_group() as group:
                group.create_task(self._send_out(member), name=f"send-{facts.name}")
                group.create_task(self._end_when_lost(member), name=f"lost-{facts.name}")
                while True:
                    self._heard(node, member, await link.receive())
        except (TransportError, asyncio.CancelledError) as error:
            self._lose_member(node, member, str(error) or "the master is shutting down")
            raise
        finally:
            await link.close(member.reason)

    def _joined(self, link: ControlLink, member: _Member, facts: NodeFacts) -> None:
        if member.ended.is_set():
            return  # it joined again while it was being welcomed
        facts = msgspec.structs.replace(facts, addresses=_dialable(link.address, facts.addresses))
        self._note(events.NodeJoined(facts, at=self._loop.time(), is_head=False))
        self._log.info("node joined", name=facts.name, node=facts.node_id, device=str(facts.device))

    async def _send_out(self, member: _Member) -> None:
        """A slow worker holds up nobody else: each link has its own queue."""
        while True:
            await member.control.send(await member.outbox.get())

    async def _end_when_lost(self, member: _Member) -> None:
        await member.ended.wait()
        raise LinkClosedError(member.reason)

    def _heard(self, node: NodeId, member: _Member, message: Message) -> None:
        if member.ended.is_set():
            return  # what a lost link still brings says nothing of the node that has joined again
        match message:
            case Pong():
                self._ponged_by(node, member, message)
            case LoadProgress():
                self._note(events.StageLoading(node, message.epoch, message.loaded_bytes, message.total_bytes))
            case StageReady():
                self._note(events.StageBecameReady(node, message.epoch, message.direct))
            case AssignRefused():
                self._log.warning("stage refused", name=member.name, reason=message.reason)
                refused = (message.epoch, message.needed_bytes, message.present_bytes, message.reason)
                self._note(events.StageRefused(node, *refused))
            case StageFailed():
                self._stage_failed(node, member, message)
            case _:
                raise RemoteProtocolError(f"A worker sent {type(message).__name__}, which a head does not take.")

    def _ponged_by(self, node: NodeId, member: _Member, pong: Pong) -> None:
        now = self._loop.time()
        round_trip_s = now - member.pinged_at if pong.number == member.ping_number else None
        member.pong_number = max(member.pong_number, min(pong.number, member.ping_number))
        self._note(events.NodeHeard(node, now, pong.load, round_trip_s))
        self._answered.set()

    def _stage_failed(self, node: NodeId, member: _Member, failed: StageFailed) -> None:
        """Whatever broke, this stage cannot go on: the node rejoins fresh, and the next plan starts clean.

        What is said of a stage that it was told to unload meanwhile is no news.
        """
        if failed.epoch == member.epoch:
            self.lose(node, failed.reason)

    # --- losing -------------------------------------------------------------------------------------------------

    def lose(self, node: NodeId, reason: str) -> None:
        """End the node's link, if it has one; its own program may join again."""
        member = self._members.get(node)
        if member is not None:
            self._lose_member(node, member, reason)

    def _lose_member(self, node: NodeId, member: _Member, reason: str) -> None:
        if member.ended.is_set():
            return
        del self._members[node]
        member.reason = reason
        member.ended.set()
        self._answered.set()
        self._log.warning("node lost", name=member.name, reason=reason)
        self._note(events.NodeLost(node, reason, self._loop.time()))

    # --- what is told to them -----------------------------------------------------------------------------------

    def assign(self, node: NodeId, assign: Assign) -> None:
        self._tell(node, assign, assign.plan.epoch)

    def release(self, node: NodeId, epoch: int) -> None:
        self._tell(node, Release(epoch), None)

    def share(self, status: bytes) -> None:
        for node in list(self._members):
            self._send(node, StatusShare(status))

    def ping(self) -> None:
        for node, member in list(self._members.items()):
            member.ping_number += 1
            member.pinged_at = self._loop.time()
            self._send(node, Ping(member.ping_number))

    async def refresh(self) -> None:
        """Ask all for their figures; waits for them at most FRESH_DEADLINE_S."""
        self.ping()
        asked = [(member, member.ping_number) for member in self._members.values()]
        try:
            async with asyncio.timeout(FRESH_DEADLINE_S):
                while any(not m.ended.is_set() and m.pong_number < number for m, number in asked):
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError:
            return

    def _tell(self, node: NodeId, message: Message, epoch: int | None) -> None:
        member = self._members.get(node)
        if member is not None:
            member.epoch = epoch
            self._send(node, message)

    def _send(self, node: NodeId, message: Message) -> None:
        member = self._members.get(node)
        if member is None:
            return
        try:
            member.outbox.put_nowait(message)
        except asyncio.QueueFull:
            self._lose_member(node, member, "it takes no more messages")


def _dialable(seen: Address, said: tuple[Address, ...]) -> tuple[Address, ...]:
    """Where a node can be dialled: at the port that it listens on, first where the head really saw it.

    A node seen on loopback is on the head's machine; only others there can use that address, so it comes last.
    """
    at = Address(seen.host, said[0].port if said else seen.port)
    others = [address for address in said if address != at]
    is_local = seen.host in ("127.0.0.1", "::1")
    return (*others, at) if is_local else (at, *others)
