from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from tests.helpers.arithmetic_engine import ArithmeticEngine
from tests.helpers.pipeline_bench import HEAD, SMALL, Silence, address, make_assign, make_plan, no_control
from tests.helpers.simulated_cluster import SimulatedHub, hello, node_facts, node_id
from tests.helpers.virtual_time import run
from transport import identity
from transport.contracts import ControlLink
from transport.errors import LinkClosedError, TransportError
from transport.identity import ClusterAuthority
from transport.messages import (
    AskSpans,
    Assign,
    AssignRefused,
    BadFrames,
    DeviceLoad,
    FetchProgress,
    Goodbye,
    Join,
    LoadProgress,
    Message,
    NodeLoad,
    Ping,
    Pong,
    Refused,
    Release,
    Removed,
    Renew,
    Renewed,
    Roll,
    Span,
    Spans,
    StageFailed,
    StageReady,
    StatusShare,
    Welcome,
)
from transport.types import Address, NodeFacts, Versions
from vramancer_cli.cluster import events
from vramancer_cli.runtime import members
from vramancer_cli.runtime.members import (
    FRESH_DEADLINE_S,
    JOIN_DEADLINE_S,
    OUTBOX_BOUND,
    SPANS_DEADLINE_S,
    TWIN_DEADLINE_S,
    Members,
)
from vramancer_cli.runtime.registrar import Registrar
from vramancer_cli.telemetry.security import Kind
from vramancer_cli.telemetry.security_log import SecurityLog, read

E = TypeVar("E")
LOAD = NodeLoad((DeviceLoad(1, 2),), 3)
NOW = 1_800_000_000.0
AUTHORITY = ClusterAuthority.create("home", NOW)


def facts(number: int) -> NodeFacts:
    return node_facts(number, ArithmeticEngine(SMALL))


class MembersBench:
    """Members on node 0; a test plays the workers. `noted` has every event."""

    def __init__(self) -> None:
        self.hub = SimulatedHub(0.01)
        self.noted: list[events.Event] = []
        self.registrar = Registrar(authority=AUTHORITY, clock=lambda: NOW)
        self.members = Members(facts(0), "home", self.noted.append, self.registrar)
        self.hub.network(hello(0), address(0), self.members.accept, Silence())
        self.dialled = 0

    async def dial(self, number: int) -> ControlLink:
        self.dialled += 1  # an address of its own, so that a node can be here twice
        network = self.hub.network(hello(number), Address(f"dial {self.dialled}", 7), no_control, Silence())
        return await network.dial_control((address(0),), HEAD)

    async def join(self, number: int, joining: NodeFacts | None = None) -> ControlLink:
        link = await self.dial(number)
        await link.send(Join(joining or facts(number)))
        assert isinstance(await link.receive(), Welcome)
        assert isinstance(await link.receive(), Roll)
        return link

    def only(self, kind: type[E]) -> list[E]:
        return [event for event in self.noted if isinstance(event, kind)]


def play(scene: Callable[[MembersBench], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        await scene(MembersBench())

    run(main())


async def said(link: ControlLink, seconds: float = 0.5) -> list[Message | str]:
    """What comes over the link within so many seconds; a string for its end."""
    heard: list[Message | str] = []
    try:
        async with asyncio.timeout(seconds):
            while True:
                heard.append(await link.receive())
    except TimeoutError:
        pass
    except TransportError as error:
        heard.append(str(error))
    return heard


# --- who is let in --------------------------------------------------------------------------------------------------


def test_a_worker_is_welcomed_and_noted_with_the_address_where_it_was_seen_first() -> None:
    async def scene(bench: MembersBench) -> None:
        said_addresses = (Address("10.0.0.5", 5001), Address("192.168.1.5", 5001))
        link = await bench.dial(1)
        await link.send(Join(msgspec.structs.replace(facts(1), addresses=said_addresses)))
        assert await link.receive() == Welcome("home", HEAD, (address(0),), members.HEARTBEAT_S)
        [joined] = bench.only(events.NodeJoined)
        assert joined.facts.addresses == (Address("dial 1", 5001), *said_addresses)
        assert not joined.is_head

    play(scene)


def test_a_worker_seen_on_loopback_is_dialled_there_last() -> None:
    async def scene(bench: MembersBench) -> None:
        network = bench.hub.network(hello(1), Address("127.0.0.1", 4444), no_control, Silence())
        link = await network.dial_control((address(0),), HEAD)
        await link.send(Join(facts(1)))
        await link.receive()
        [joined] = bench.only(events.NodeJoined)
        assert joined.facts.addresses == (address(1), Address("127.0.0.1", 1))

    play(scene)


@pytest.mark.parametrize("versions", [Versions("0", "0.1", "0"), Versions("0", "0", "4.0")])
def test_versions_that_compute_differently_are_refused_with_a_sentence(versions: Versions) -> None:
    async def scene(bench: MembersBench) -> None:
        link = await bench.dial(1)
        await link.send(Join(msgspec.structs.replace(facts(1), versions=versions)))
        refused, end = await said(link)
        assert isinstance(refused, Refused)
        assert f"'node-1' has torch {versions.torch} and transformers {versions.transformers}" in refused.reason
        assert "install the same VRAMancer on both" in refused.hint
        assert isinstance(end, str)
        assert bench.noted == []

    play(scene)


def test_another_program_version_may_join() -> None:
    async def scene(bench: MembersBench) -> None:
        await bench.join(1, msgspec.structs.replace(facts(1), versions=Versions("9", "0", "0")))

    play(scene)


def test_a_full_cluster_refuses_newcomers_but_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MAX_NODES", 2)

    async def scene(bench: MembersBench) -> None:
        for number in (1, 2, 2):
            await bench.join(number)
        link = await bench.dial(3)
        await link.send(Join(facts(3)))
        refused = await link.receive()
        assert isinstance(refused, Refused)
        assert "full" in refused.reason

    play(scene)


@pytest.mark.parametrize("first", [Join(facts(2)), Ping(1), StageReady(1, 0, 0, direct=True)])
def test_a_link_that_does_not_begin_with_its_own_join_ends(first: Message) -> None:
    async def scene(bench: MembersBench) -> None:
        link = await bench.dial(1)
        await link.send(first)
        [end] = await said(link)
        assert isinstance(end, str)
        [refused] = bench.noted
        assert isinstance(refused, events.NodeQuarantined) and refused.node == node_id(1)

    play(scene)


def test_a_caller_that_says_nothing_is_not_kept() -> None:
    async def scene(bench: MembersBench) -> None:
        link = await bench.dial(1)
        assert await said(link, JOIN_DEADLINE_S - 1) == []
        [end] = await said(link, 2)
        assert isinstance(end, str)

    play(scene)


def test_a_caller_that_is_gone_before_its_welcome_leaves_nothing_behind() -> None:
    async def scene(bench: MembersBench) -> None:
        link = await bench.dial(1)
        await link.send(Join(facts(1)))
        await link.close("changed my mind")
        await asyncio.sleep(1)
        assert len(bench.only(events.NodeJoined)) == len(bench.only(events.NodeLost))
        assert bench.members._members == {}

    play(scene)


# --- joining again --------------------------------------------------------------------------------------------------


def test_joining_again_replaces_the_old_link_whatever_that_still_brings() -> None:
    async def scene(bench: MembersBench) -> None:
        old = await bench.join(1)
        bench.members.assign(node_id(1), make_assign(make_plan((SMALL,) * 3), 1))
        bench.hub.set_latency(node_id(1), HEAD, 0.2)
        new = await bench.join(1)
        for late in (StageFailed(1, 0, "late"), StageReady(1, 0, 0, direct=True), Pong(1, LOAD)):
            await old.send(late)
        kinds = [type(event) for event in bench.noted]
        assert kinds == [events.NodeJoined, events.NodeLost, events.NodeJoined]
        assert [type(m) for m in await said(old)][:1] == [Assign]
        assert (await said(old))[-1] == "it joined again"
        assert [type(event) for event in bench.noted] == kinds, "the old link was heard"
        bench.members.ping()
        assert await said(new) == [Ping(1)]

    play(scene)


def test_the_end_of_the_old_link_says_nothing_of_the_new_one() -> None:
    async def scene(bench: MembersBench) -> None:
        bench.hub.partition(node_id(1))
        bench.hub.heal(node_id(1))
        old = await bench.join(1)
        await bench.join(1)
        await old.close("late")
        await asyncio.sleep(1)
        assert len(bench.only(events.NodeLost)) == 1

    play(scene)


async def answering(link: ControlLink) -> None:
    """A worker that lives: every ping gets its pong."""
    while True:
        message = await link.receive()
        if isinstance(message, Ping):
            await link.send(Pong(message.number, LOAD))


def test_a_twin_is_refused_while_the_first_answers_and_both_are_named() -> None:
    async def scene(bench: MembersBench) -> None:
        first = await bench.join(1)
        living = asyncio.create_task(answering(first))
        for dialled in (2, 3):
            copy = await bench.dial(1)
            await copy.send(Join(msgspec.structs.replace(facts(1), name="attic")))
            refused, end = await said(copy)
            assert isinstance(refused, Refused) and isinstance(end, str)
            assert f"'attic' at dial {dialled} has the same identity as 'node-1' at dial 1" in refused.reason
            assert "copied" in refused.hint
        assert not living.done() and bench.only(events.NodeLost) == []
        assert len(bench.only(events.NodeJoined)) == 1
        living.cancel()

    play(scene)


def test_a_node_whose_old_link_ended_is_let_in_without_a_pause() -> None:
    async def scene(bench: MembersBench) -> None:
        await (await bench.join(1)).close("the machine restarts")
        await asyncio.sleep(0.1)
        began_s = asyncio.get_running_loop().time()
        await bench.join(1)
        assert asyncio.get_running_loop().time() - began_s < 0.1

    play(scene)


def test_of_two_that_come_for_one_dead_link_one_gets_in() -> None:
    async def scene(bench: MembersBench) -> None:
        await bench.join(1)  # and never answers
        links = [await bench.dial(1) for _ in range(2)]
        for link in links:
            await link.send(Join(facts(1)))
        heard: list[Message] = []

        async def live(link: ControlLink) -> None:
            heard.append(await link.receive())
            await answering(link)

        living = [asyncio.create_task(live(link)) for link in links]
        await asyncio.sleep(2.5 * TWIN_DEADLINE_S)
        assert {type(message) for message in heard} == {Welcome, Refused}
        assert [lost.reason for lost in bench.only(events.NodeLost)] == ["it joined again"]
        for task in living:
            task.cancel()
        await asyncio.gather(*living, return_exceptions=True)

    play(scene)


def test_a_node_that_is_removed_while_its_old_link_is_asked_does_not_get_in(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(bench: MembersBench) -> None:
        await bench.join(1)
        again = await bench.dial(1)
        await again.send(Join(facts(1)))
        await asyncio.sleep(0.5 * TWIN_DEADLINE_S)
        monkeypatch.setattr(bench.members._registrar, "is_removed", lambda node: node == node_id(1))
        bench.members.remove(node_id(1))
        assert isinstance((await said(again))[0], Removed)
        assert bench.members._members == {}

    play(scene)


def test_a_node_that_names_a_device_twice_does_not_get_in() -> None:
    async def scene(bench: MembersBench) -> None:
        link = await bench.dial(1)
        own = facts(1)
        await link.send(Join(msgspec.structs.replace(own, devices=own.devices * 2)))
        await asyncio.sleep(0.1)
        assert [type(event) for event in bench.noted] == [events.NodeQuarantined]
        assert bench.members._members == {}

    play(scene)


# --- what workers say -----------------------------------------------------------------------------------------------


def test_what_a_worker_says_becomes_an_event() -> None:
    async def scene(bench: MembersBench) -> None:
        link = await bench.join(1)
        bench.noted.clear()
        for message in (
            FetchProgress(3, 4, 5),
            LoadProgress(3, 1, 2),
            StageReady(3, 5, 6, direct=True),
            AssignRefused(3, 10, 4, "too much"),
            Pong(99, LOAD),
        ):
            await link.send(message)
        await asyncio.sleep(0.1)
        node, now = node_id(1), bench.only(events.NodeHeard)[0].at
        assert bench.noted == [
            events.StageFetching(node, 3, 4, 5, now),
            events.StageLoading(node, 3, 1, 2, now),
            events.StageBecameReady(node, 3, direct=True, at=now),
            events.StageRefused(node, 3, 10, 4, "too much"),
            events.NodeHeard(node, now, LOAD, None),
        ]

    play(scene)


@pytest.mark.parametrize(
    "wrong",
    [
        Welcome("a", "b", (), 1.0),
        Release(1),
        Join(facts(1)),
        AssignRefused(3, 10, 4, "of a device that it has not", 1),
        Pong(1, NodeLoad((), 3)),
        Pong(1, NodeLoad((DeviceLoad(1, 2), DeviceLoad(1, 2)), 3)),
    ],
)
def test_what_a_worker_may_not_say_ends_its_link(wrong: Message) -> None:
    async def scene(bench: MembersBench) -> None:
        link = await bench.join(1)
        await link.send(wrong)
        await asyncio.sleep(0.1)
        [lost] = bench.only(events.NodeLost)
        assert type(wrong).__name__ in lost.reason

    play(scene)


def test_a_failed_stage_loses_the_node_unless_it_was_released_meanwhile() -> None:
    async def scene(bench: MembersBench) -> None:
        link = await bench.join(1)
        plan = make_plan((SMALL,) * 3, epoch=5)
        await link.send(StageFailed(5, 0, "never assigned"))
        await asyncio.sleep(0.1)
        bench.members.assign(node_id(1), make_assign(plan, 1))
        await link.send(StageFailed(4, 0, "an older one"))
        await asyncio.sleep(0.1)
        bench.members.release(node_id(1), 5)
        await link.send(StageFailed(5, 0, "released"))
        await asyncio.sleep(0.1)
        assert bench.only(events.NodeLost) == []
        bench.members.assign(node_id(1), make_assign(plan, 1))
        await link.send(StageFailed(5, 0, "a tensor is not finite"))
        await asyncio.sleep(0.1)
        [lost] = bench.only(events.NodeLost)
        assert (lost.reason, lost.failed) == ("a tensor is not finite", True)
        assert (await said(link))[-1] == "a tensor is not finite"

    play(scene)


def test_what_came_together_with_the_failure_is_not_heard_any_more() -> None:
    async def scene(bench: MembersBench) -> None:
        link = await bench.join(1)
        bench.members.assign(node_id(1), make_assign(make_plan((SMALL,) * 3), 1))
        for message in (StageFailed(1, 0, "a tensor is not finite"), StageReady(1, 0, 0, direct=True)):
            await link.send(message)
        await asyncio.sleep(0.1)
        assert [type(event) for event in bench.noted] == [events.NodeJoined, events.NodeLost]

    play(scene)


def test_a_worker_may_accuse_another_one_of_its_own_plan_and_nobody_else() -> None:
    async def scene(bench: MembersBench) -> None:
        accused: list[tuple[str, str, str]] = []
        bench.members._accuses = lambda *said: accused.append(said)
        link = await bench.join(1)
        await bench.join(2)
        bench.members.assign(node_id(1), make_assign(make_plan((SMALL, SMALL, SMALL), epoch=4), 1))
        for epoch, sender in ((3, 2), (4, 9), (4, 2)):
            await link.send(BadFrames(epoch, node_id(sender), "no magic"))
        await asyncio.sleep(0.1)
        assert accused == [(node_id(1), node_id(2), "no magic")]

    play(scene)


# --- what is told to them -------------------------------------------------------------------------------------------


def test_messages_go_out_in_order_to_their_node_only() -> None:
    async def scene(bench: MembersBench) -> None:
        one, other = await bench.join(1), await bench.join(2)
        assign = make_assign(make_plan((SMALL,) * 3), 1)
        bench.members.assign(node_id(1), assign)
        bench.members.release(node_id(1), 1)
        bench.members.release(node_id(9), 1)
        bench.members.share(b"{}")
        assert await said(one) == [assign, Release(1), StatusShare(b"{}")]
        assert await said(other) == [StatusShare(b"{}")]

    play(scene)


def test_a_worker_that_takes_nothing_holds_up_nobody_and_is_lost() -> None:
    async def scene(bench: MembersBench) -> None:
        stuck, well = await bench.join(1), await bench.join(2)
        bench.members._members[node_id(1)].control = StuckLink(stuck)
        for number in range(OUTBOX_BOUND + 5):
            bench.members.ping()
            assert await said(well, 0.1) == [Ping(number + 1)]
        assert [(lost.node, lost.reason) for lost in bench.only(events.NodeLost)] == [
            (node_id(1), "it takes no more messages")
        ]

    play(scene)


class StuckLink:
    """A link whose other end reads nothing: `send` does not come back before its deadline."""

    def __init__(self, link: ControlLink) -> None:
        self.hello, self.address = link.hello, link.address

    async def send(self, message: Message) -> None:
        await asyncio.sleep(3600)

    async def receive(self) -> Message:
        return Goodbye("")

    async def close(self, reason: str = "") -> None: ...


def test_refreshing_waits_for_the_figures_of_all_but_not_for_long() -> None:
    async def scene(bench: MembersBench) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        await bench.members.refresh()
        assert loop.time() == started_s, "it waited for nobody"
        links = [await bench.join(number) for number in (1, 2)]

        async def pong(link: ControlLink, after_s: float) -> None:
            ping = await link.receive()
            assert isinstance(ping, Ping)
            await asyncio.sleep(after_s)
            await link.send(Pong(ping.number, LOAD))

        started_s = loop.time()
        await asyncio.gather(bench.members.refresh(), pong(links[0], 0.1), pong(links[1], 0.3))
        assert loop.time() - started_s == pytest.approx(0.32, abs=0.01)
        heard = {event.node: event.round_trip_s for event in bench.only(events.NodeHeard)}
        assert heard == {node_id(1): pytest.approx(0.12, abs=0.01), node_id(2): pytest.approx(0.32, abs=0.01)}
        started_s = loop.time()
        await asyncio.gather(bench.members.refresh(), pong(links[0], 0.1))
        assert loop.time() - started_s == pytest.approx(FRESH_DEADLINE_S)

    play(scene)


def test_spans_are_asked_of_all_and_told_with_how_far_each_clock_is() -> None:
    async def scene(bench: MembersBench) -> None:
        quick, silent = [await bench.join(number) for number in (1, 2)]
        loop, spans = asyncio.get_running_loop(), (Span("embed", 7, 1.0, 2.0),)

        async def tell(link: ControlLink) -> None:
            ping = await link.receive()
            assert isinstance(ping, Ping)
            await link.send(Pong(ping.number, LOAD, loop.time() + 500.0))
            asked = await link.receive()
            assert asked == AskSpans(1, 2.5)
            await link.send(Spans(1, spans, last=False))
            await link.send(Spans(1, spans, last=True))

        bench.members.ping()
        telling = asyncio.create_task(tell(quick))
        await asyncio.sleep(0.1)
        started_s = loop.time()
        told = await bench.members.spans(2.5)
        assert loop.time() - started_s == pytest.approx(SPANS_DEADLINE_S), "the other one never answers"
        await telling
        assert told.keys() == {node_id(1)} and told[node_id(1)].spans == 2 * spans
        clock = told[node_id(1)].clock
        assert clock is not None and clock.offset_s == pytest.approx(500.0, abs=clock.error_s)
        assert 0.005 < clock.error_s < 0.05
        bench.members.lose(node_id(2), "unplugged")
        del silent

    play(scene)


def test_refreshing_does_not_wait_for_one_that_is_lost_meanwhile() -> None:
    async def scene(bench: MembersBench) -> None:
        await bench.join(1)
        refreshing = asyncio.create_task(bench.members.refresh())
        await asyncio.sleep(0.1)
        bench.members.lose(node_id(1), "unplugged")
        started_s = asyncio.get_running_loop().time()
        await refreshing
        assert asyncio.get_running_loop().time() - started_s < 0.1

    play(scene)


def test_losing_tells_the_worker_why_and_leaves_no_task() -> None:
    async def scene(bench: MembersBench) -> None:
        link = await bench.join(1)
        bench.members.lose(node_id(1), "silent for 3.2 s")
        bench.members.lose(node_id(1), "again")
        assert await said(link) == ["silent for 3.2 s"]
        with pytest.raises(LinkClosedError):
            await link.send(Pong(1, LOAD))
        assert [lost.reason for lost in bench.only(events.NodeLost)] == ["silent for 3.2 s"]
        assert asyncio.all_tasks() == {asyncio.current_task()}

    play(scene)


# --- removal and renewal ----------------------------------------------------------------------------------------------


def test_a_removed_node_is_told_and_cut_within_a_second_and_the_others_learn_it() -> None:
    async def scene(bench: MembersBench) -> None:
        gone, stays = await bench.join(1), await bench.join(2)
        bench.registrar.remove(node_id(1))
        bench.members.remove(node_id(1))
        told, end = await said(gone, 1.0)
        assert told == Removed()
        assert end == "it was removed from the cluster"
        [roll] = await said(stays, 1.0)
        assert isinstance(roll, Roll)
        assert roll.removed == (node_id(1),)
        [lost] = bench.only(events.NodeLost)
        assert (lost.node, lost.reason) == (node_id(1), "it was removed from the cluster")

    play(scene)


def test_one_that_takes_nothing_is_cut_all_the_same() -> None:
    async def scene(bench: MembersBench) -> None:
        link = await bench.join(1)
        bench.hub.partition(node_id(1))
        for _ in range(3):
            bench.members.ping()
        bench.registrar.remove(node_id(1))
        bench.members.remove(node_id(1))
        await asyncio.sleep(1.0)
        assert bench.members._members == {}
        assert {task.get_name() for task in asyncio.all_tasks()}.isdisjoint({"send-node-1", "lost-node-1"})
        assert link is not None

    play(scene)


def test_it_does_not_come_back_and_hears_why() -> None:
    async def scene(bench: MembersBench) -> None:
        bench.registrar.remove(node_id(1))
        link = await bench.dial(1)
        await link.send(Join(facts(1)))
        told, end = await said(link)
        assert told == Removed()
        assert isinstance(end, str)
        assert bench.noted == []

    play(scene)


def test_who_joins_learns_at_once_who_was_removed_and_what_time_it_is() -> None:
    async def scene(bench: MembersBench) -> None:
        bench.registrar.remove(node_id(7))
        link = await bench.dial(1)
        await link.send(Join(facts(1)))
        _, roll = await link.receive(), await link.receive()
        assert roll == Roll((node_id(7),), NOW)

    play(scene)


def test_a_certificate_is_renewed_for_the_node_of_the_link_only() -> None:
    async def scene(bench: MembersBench) -> None:
        link = await bench.join(1)
        await link.send(Renew(identity.make_request(identity.make_key())))
        [end] = await said(link)
        assert isinstance(end, str)
        [lost] = bench.only(events.NodeLost)
        assert "certificate of another one" in lost.reason

    play(scene)


def test_a_renewal_is_answered_with_the_certificate() -> None:
    key = identity.make_key()
    node = identity.node_id_of_key(key)

    async def scene(bench: MembersBench) -> None:
        network = bench.hub.network(
            msgspec.structs.replace(hello(1), node=node), Address("dial x", 7), no_control, Silence()
        )
        link = await network.dial_control((address(0),), HEAD)
        await link.send(Join(msgspec.structs.replace(facts(1), node_id=node)))
        await link.send(Renew(identity.make_request(key)))
        [renewed] = [message for message in await said(link) if isinstance(message, Renewed)]
        identity.check_issued(renewed.certificate, identity.to_der(AUTHORITY.certificate_pem), node)

    play(scene)


# --- the security log -------------------------------------------------------------------------------------------------


def test_who_joins_who_comes_twice_and_who_comes_back_is_noted(tmp_path: Path) -> None:
    async def scene(bench: MembersBench) -> None:
        bench.registrar.events = SecurityLog(tmp_path)
        joined = await bench.join(1)
        living = asyncio.create_task(answering(joined))
        copy = await bench.dial(1)
        await copy.send(Join(msgspec.structs.replace(facts(1), name="attic")))
        assert isinstance((await said(copy))[0], Refused)
        living.cancel()
        bench.registrar.remove(node_id(1))
        bench.members.remove(node_id(1))
        network = bench.hub.network(hello(1), Address("192.0.2.7", 4444), no_control, Silence())
        back = await network.dial_control((address(0),), HEAD)
        await back.send(Join(facts(1)))
        assert isinstance((await said(back))[0], Removed)
        bench.registrar.events.close()

    play(scene)
    assert [(event.kind, event.node, event.name, event.address) for event in read(tmp_path, 9)] == [
        (Kind.JOINED, node_id(1), "node-1", ""),
        (Kind.COPY_REFUSED, node_id(1), "attic", ""),
        (Kind.REMOVED, node_id(1), "", ""),
        (Kind.TURNED_AWAY, node_id(1), "", "192.0.2.7"),
    ]
