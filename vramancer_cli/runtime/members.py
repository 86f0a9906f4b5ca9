"""The workers' control links, as the head has them: who is let in, what is told to them, and what comes back.

What a worker says becomes a cluster event; what to do about it is the coordinator's business. Never data links, torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import isfinite

import msgspec

from transport.clocks import ClockFilter
from transport.contracts import ControlLink, Outcome
from transport.errors import LinkClosedError, RemoteProtocolError, TransportError
from transport.messages import (
    AheadProgress,
    Assign,
    AssignRefused,
    BadFrames,
    FetchProgress,
    Join,
    Leaving,
    LoadProgress,
    Message,
    Ping,
    Pong,
    Refused,
    Release,
    Removed,
    Renew,
    Renewed,
    Roll,
    Spans,
    StageFailed,
    StageReady,
    StatusShare,
    Welcome,
)
from transport.types import Address, NodeFacts, NodeId
from vramancer_cli.cluster import events
from vramancer_cli.runtime.registrar import Registrar
from vramancer_cli.runtime.span_inbox import SpanInbox, ToldSpans
from vramancer_cli.runtime.tasks import task_group
from vramancer_cli.telemetry import log
from vramancer_cli.telemetry.security import Kind

HEARTBEAT_S = 1.0
JOIN_DEADLINE_S = 10.0
FRESH_DEADLINE_S = 1.0
SPANS_DEADLINE_S = 3.0
TWIN_DEADLINE_S = 2.0
"""Within this, the old link of a node that joins again answers, or is taken for dead."""
MAX_NODES = 256
OUTBOX_BOUND = 64
PART_S = 0.4
"""What a removed node gets to take the news; the link's own goodbye comes on top."""

Note = Callable[[events.Event], None]
Leaves = Callable[[NodeId], None]
Accuses = Callable[[NodeId, NodeId, str], None]


@dataclass(slots=True)
class _Member:
    """One worker's control link. `ended` is set once it has been lost; `epoch` is what it was last told to hold."""

    name: str
    devices: int
    control: ControlLink
    outbox: asyncio.Queue[Message] = field(default_factory=lambda: asyncio.Queue[Message](OUTBOX_BOUND))
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""
    removed: bool = False
    epoch: int | None = None
    ping_number: int = 0
    pinged_at: float = 0.0
    pong_number: int = 0
    clock: ClockFilter = field(default_factory=ClockFilter)
    spans: SpanInbox = field(default_factory=SpanInbox)


_Asked = Sequence[tuple[_Member, int]]


class Members:
    """All methods on the event loop. `note` gets an event for everything that happens to a worker.

    `registrar` says who was removed, and renews certificates; `leaves` is told who wants to hand its layers on,
    `accuses` which worker says of which other one that it sends garbage, and why.
    """

    def __init__(
        self,
        facts: NodeFacts,
        cluster: str,
        note: Note,
        registrar: Registrar | None = None,
        leaves: Leaves = lambda _: None,
        accuses: Accuses = lambda _, other, reason: None,
    ) -> None:
        self._registrar = registrar or Registrar()
        self._facts = facts
        self._cluster = cluster
        self._note = note
        self._leaves = leaves
        self._accuses = accuses
        self._log = log.get("members")
        self._loop = asyncio.get_running_loop()
        self._members: dict[NodeId, _Member] = {}
        self._answered = asyncio.Event()  # somebody has answered a ping, or never will

    # --- a link's life ------------------------------------------------------------------------------------------

    async def accept(self, link: ControlLink) -> None:
        """A control link came in (a ControlHandler): its whole life, and every task of it."""
        try:
            join = await self._first_words(link)
        except TimeoutError:
            return
        except RemoteProtocolError as error:
            self.quarantine(link.hello.node, f"control link: {error}")
            raise
        twin = await self._twin(link, join.facts)
        if self._registrar.is_removed(join.facts.node_id):
            self._log.warning("a removed node came back", name=join.facts.name, node=join.facts.node_id)
            self._registrar.note(Outcome("removed", join.facts.node_id), link.address.host)
            await link.send(Removed())
            return
        refusal = twin or self._refusal(join.facts)
        if refusal is not None:
            self._log.warning("node refused", name=join.facts.name, reason=refusal.reason)
            if twin is not None:
                self._note_security(Kind.COPY_REFUSED, link, join.facts)
            await link.send(refusal)
            return
        await self._serve(link, join)

    async def _first_words(self, link: ControlLink) -> Join:
        """Raises TimeoutError, LinkClosedError, RemoteProtocolError."""
        async with asyncio.timeout(JOIN_DEADLINE_S):
            join = await link.receive()
        if not isinstance(join, Join) or join.facts.node_id != link.hello.node:
            raise RemoteProtocolError("A control link must begin with a Join of its own node.")
        if len({str(device.facts) for device in join.facts.devices}) < len(join.facts.devices):
            raise RemoteProtocolError("A node names a device twice.")
        return join

    def _refusal(self, facts: NodeFacts) -> Refused | None:
        own = self._facts.versions
        if (facts.versions.torch, facts.versions.transformers) != (own.torch, own.transformers):
            return Refused(
                f"'{facts.name}' has torch {facts.versions.torch} and transformers {facts.versions.transformers}; "
                f"the master has {own.torch} and {own.transformers}.",
                "Versions that compute differently cannot share a model: install the same VRAMancer on both.",
            )
        if len(self._members) >= MAX_NODES and facts.node_id not in self._members:
            return Refused(
                f"The cluster is full ({MAX_NODES} nodes).", "Remove one first: 'vramancer nodes remove NAME'."
            )
        return None

    async def _twin(self, link: ControlLink, facts: NodeFacts) -> Refused | None:
        """A node that comes while its old link stands has started again, unless that link answers: then two machines
        have one identity, and would take turns evicting each other. The one that was first stays."""
        while (old := self._members.get(facts.node_id)) is not None:
            if await self._answer(self._ask([facts.node_id]), TWIN_DEADLINE_S):
                return Refused(
                    f"'{facts.name}' at {link.address.host} has the same identity as '{old.name}' at "
                    f"{old.control.address.host}, which is in the cluster and answers.",
                    "A state folder was copied: delete the copy, and join again from there with a code of its own.",
                )
            self._lose_member(facts.node_id, old, "it joined again")
        return None

    async def _serve(self, link: ControlLink, join: Join) -> None:
        facts, node = join.facts, join.facts.node_id
        member = self._members[node] = _Member(facts.name, len(facts.devices), link)
        try:
            await link.send(Welcome(self._cluster, self._facts.node_id, self._facts.addresses, HEARTBEAT_S))
            await link.send(self._roll())
            self._joined(link, member, facts, join.slept_s)
            await self._registrar.off_loop(partial(self._registrar.named, node, facts.name))
            async with task_group() as group:
                group.create_task(self._send_out(member), name=f"send-{facts.name}")
                group.create_task(self._end_when_lost(member), name=f"lost-{facts.name}")
                while True:
                    self._heard(node, member, await link.receive())
        except RemoteProtocolError as error:
            self.quarantine(node, f"control link: {error}")
            raise
        except (TransportError, asyncio.CancelledError) as error:
            self._lose_member(node, member, str(error) or "the master is shutting down")
            raise
        finally:
            await self._part(member)

    async def _part(self, member: _Member) -> None:
        """Within a second, whether the other side listens or not."""
        if member.removed:
            with suppress(TransportError, TimeoutError):
                async with asyncio.timeout(PART_S):
                    await member.control.send(Removed())
        await member.control.close(member.reason)

    def _joined(self, link: ControlLink, member: _Member, facts: NodeFacts, slept_s: float) -> None:
        if member.ended.is_set():
            return  # it joined again while it was being welcomed
        facts = msgspec.structs.replace(facts, addresses=_dialable(link.address, facts.addresses))
        self._note(events.NodeJoined(facts, self._loop.time(), is_head=False, slept_s=slept_s))
        devices = " + ".join(str(device.facts) for device in facts.devices)
        self._log.info("node joined", name=facts.name, node=facts.node_id, devices=devices)
        self._note_security(Kind.JOINED, link, facts)

    def _note_security(self, kind: Kind, link: ControlLink, facts: NodeFacts) -> None:
        self._registrar.events.note(kind, node=facts.node_id, name=facts.name, address=link.address.host)

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
            case Pong() if len(message.load.devices) == member.devices:
                self._ponged_by(node, member, message)
            case FetchProgress():
                fetched = (message.epoch, message.fetched_bytes, message.total_bytes)
                self._note(events.StageFetching(node, *fetched, self._loop.time()))
            case LoadProgress():
                loaded = (message.epoch, message.loaded_bytes, message.total_bytes)
                self._note(events.StageLoading(node, *loaded, self._loop.time()))
            case StageReady():
                self._note(events.StageBecameReady(node, message.epoch, message.direct, self._loop.time()))
            case AssignRefused() if message.position < member.devices:
                self._log.warning("stage refused", name=member.name, reason=message.reason)
                refused = (message.epoch, message.needed_bytes, message.present_bytes, message.reason)
                self._note(events.StageRefused(node, *refused, message.position))
            case StageFailed():
                self._stage_failed(node, member, message)
            case BadFrames():
                if message.epoch == member.epoch and message.sender in self._members:
                    self._accuses(node, message.sender, message.reason)
            case AheadProgress():
                self._note(events.WeightsAhead(node, message.epoch, message.there_bytes, message.total_bytes))
            case Leaving():
                self._log.info("node wants to leave", name=member.name)
                self._leaves(node)
            case Spans():
                member.spans.take(message)
                self._answered.set()
            case Renew():
                self._send(node, Renewed(self._registrar.renew(node, message.request)))
            case _:
                raise RemoteProtocolError(f"A worker sent {type(message).__name__}, which a head does not take.")

    def _ponged_by(self, node: NodeId, member: _Member, pong: Pong) -> None:
        now = self._loop.time()
        round_trip_s = now - member.pinged_at if pong.number == member.ping_number else None
        if round_trip_s is not None and isfinite(pong.clock_s) and pong.clock_s > 0:
            member.clock.note(member.pinged_at, pong.clock_s, now)
        member.pong_number = max(member.pong_number, min(pong.number, member.ping_number))
        self._note(events.NodeHeard(node, now, pong.load, round_trip_s))
        self._answered.set()

    def _stage_failed(self, node: NodeId, member: _Member, failed: StageFailed) -> None:
        """Whatever broke, this stage cannot go on: the node rejoins fresh, and the next plan starts clean.

        What is said of a stage that it was told to unload meanwhile is no news.
        """
        if failed.epoch == member.epoch:
            self._lose_member(node, member, failed.reason, failed=True)

    # --- losing -------------------------------------------------------------------------------------------------

    def lose(self, node: NodeId, reason: str, *, silent: bool = False) -> None:
        """End the node's link, if it has one; its own program may join again. `silent`: it was not heard of."""
        member = self._members.get(node)
        if member is not None:
            self._lose_member(node, member, reason, silent=silent)

    def quarantine(self, node: NodeId, reason: str) -> None:
        """It sent what the protocol does not allow: it is planned without for a while, and its link ends."""
        self._note(events.NodeQuarantined(node, reason, self._loop.time()))
        member = self._members.get(node)
        if member is not None:
            host = member.control.address.host
            self._registrar.events.note(Kind.QUARANTINED, node=node, name=member.name, address=host)
            self._lose_member(node, member, reason)

    def remove(self, node: NodeId) -> None:
        """The registrar has removed it: tell it, cut its link, and tell all others."""
        member = self._members.get(node)
        if member is not None:
            member.removed = True
            self._lose_member(node, member, "it was removed from the cluster")
        for other in list(self._members):
            self._send(other, self._roll())

    def _roll(self) -> Roll:
        return Roll(tuple(sorted(self._registrar.removed)), self._registrar.now())

    def _lose_member(
        self, node: NodeId, member: _Member, reason: str, *, failed: bool = False, silent: bool = False
    ) -> None:
        if member.ended.is_set():
            return
        del self._members[node]
        member.reason = reason
        member.ended.set()
        self._answered.set()
        self._log.warning("node lost", name=member.name, reason=reason)
        self._note(events.NodeLost(node, reason, self._loop.time(), failed, silent))

    # --- what is told to them -----------------------------------------------------------------------------------

    def plan_ended(self) -> None:
        """What is still said of its stages is no news: a dead node's neighbours report their broken links after the
        death itself."""
        for member in self._members.values():
            member.epoch = None

    def assign(self, node: NodeId, assign: Assign) -> None:
        self._tell(node, assign, assign.plan.epoch)

    def release(self, node: NodeId, epoch: int) -> None:
        self._tell(node, Release(epoch), None)

    def send(self, node: NodeId, message: Message) -> None:
        """What changes nothing of what the node holds."""
        self._send(node, message)

    def share(self, status: bytes) -> None:
        for node in list(self._members):
            self._send(node, StatusShare(status))

    def ping(self) -> None:
        self._ask(list(self._members))

    async def refresh(self) -> None:
        """Ask all for their figures; waits for them at most FRESH_DEADLINE_S."""
        await self._answer(self._ask(list(self._members)), FRESH_DEADLINE_S)

    async def spans(self, seconds: float) -> dict[NodeId, ToldSpans]:
        """What every worker did in the last `seconds`; whoever does not tell within SPANS_DEADLINE_S is not in it."""
        asked = dict(self._members)
        for node, member in asked.items():
            self._send(node, member.spans.ask(seconds))
        await self._until(lambda: all(m.spans.is_whole or m.ended.is_set() for m in asked.values()), SPANS_DEADLINE_S)
        now = self._loop.time()
        return {node: ToldSpans(m.spans.spans, m.clock.at(now)) for node, m in asked.items() if m.spans.is_whole}

    def _ask(self, nodes: Sequence[NodeId]) -> _Asked:
        """Ping these members. Gives each with its ping's number."""
        asked = [(self._members[node], self._members[node].ping_number + 1) for node in nodes]
        for node, (member, number) in zip(nodes, asked, strict=True):
            member.ping_number, member.pinged_at = number, self._loop.time()
            self._send(node, Ping(number))
        return asked

    async def _answer(self, asked: _Asked, within_s: float) -> bool:
        """Waits until each has answered or was lost. Whether all have answered in time."""
        await self._until(lambda: all(m.ended.is_set() or m.pong_number >= number for m, number in asked), within_s)
        return all(m.pong_number >= number for m, number in asked)

    async def _until(self, all_have: Callable[[], bool], within_s: float) -> None:
        """Looks again whenever somebody has answered."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not all_have():
                    self._answered.clear()
                    await self._answered.wait()

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
