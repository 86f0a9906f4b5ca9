"""The in-memory network: the protocol of real links, faults on demand, no clock but the loop's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from tests.helpers import virtual_time
from tests.helpers.wire_samples import ELM, OAK, SAMPLES, STEP, hello, tensor
from transport.connection import DEPARTS, Role
from transport.contracts import ControlLink, DataSender, DataSink, Network, Received
from transport.errors import (
    IncompatibleError,
    LinkBusyError,
    LinkClosedError,
    LocalProtocolError,
    RemoteProtocolError,
    TransportError,
    TrustError,
    UnreachableError,
)
from transport.inproc import MAX_WAITING_FRAMES, InprocHub, InprocNetwork
from transport.messages import Activation, Goodbye, Hello, Message, Ping, Step
from transport.types import Address, NodeId

ASH = "77" * 16
LATENCY_S = 0.01


@dataclass
class Node:
    """A node that keeps what comes to it."""

    hub: InprocHub
    node: NodeId
    name: str
    own: Hello | None = None
    links: list[ControlLink] = field(default_factory=list)
    frames: list[tuple[float, Received]] = field(default_factory=list)
    ends: list[tuple[NodeId, TransportError | None]] = field(default_factory=list)
    handler: Callable[[ControlLink], Awaitable[None]] | None = None

    def __post_init__(self) -> None:
        self.address = Address(self.name, 5001)
        own = self.own or hello(self.node, self.name)
        self.network: InprocNetwork = self.hub.network(own, self.address, self.on_control, self)

    async def on_control(self, link: ControlLink) -> None:
        self.links.append(link)
        if self.handler:
            await self.handler(link)
        else:
            await asyncio.Event().wait()

    def on_frame(self, sender: NodeId, received: Received) -> None:
        self.frames.append((asyncio.get_running_loop().time(), received))

    def on_closed(self, sender: NodeId, error: TransportError | None) -> None:
        self.ends.append((sender, error))

    async def control_to(self, other: Node) -> tuple[ControlLink, ControlLink]:
        link = await self.network.dial_control([other.address], other.node)
        await asyncio.sleep(0)
        return link, other.links[-1]

    async def data_to(self, other: Node) -> DataSender:
        return await self.network.dial_data([other.address], other.node, self.on_closed)

    @property
    def numbers(self) -> list[int]:
        return [received.number for _, received in self.frames]


def pair() -> tuple[InprocHub, Node, Node]:
    hub = InprocHub(LATENCY_S)
    return hub, Node(hub, ELM, "elm"), Node(hub, OAK, "oak")


def now() -> float:
    return asyncio.get_running_loop().time()


def activation(number: int) -> Activation:
    return Activation(1, Step(0, number, ()))


async def receive_all(link: ControlLink, count: int) -> list[Message]:
    return [await link.receive() for _ in range(count)]


def simulated(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Runs the test on the virtual clock; a test that hangs is a DeadlockError at once."""

    def run() -> None:
        async def main() -> None:
            await test()

        virtual_time.run(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


# --- links --------------------------------------------------------------------------------------------------


@simulated
async def test_it_satisfies_the_contracts() -> None:
    _, elm, oak = pair()
    network: Network = elm.network
    sink: DataSink = oak
    link: ControlLink = await network.dial_control([oak.address], OAK)
    sender: DataSender = await network.dial_data([oak.address], OAK, elm.on_closed)
    assert (link.hello.name, sender.hello.name, sender.hello.kind) == ("oak", "oak", "data")
    assert link.address == oak.address
    assert sink is oak and oak.links[0].hello.node == ELM and oak.links[0].address == elm.address


@simulated
async def test_every_control_message_crosses_through_the_codec_after_the_latency() -> None:
    _, elm, oak = pair()
    here, there = await elm.control_to(oak)
    for sample in SAMPLES:
        if sample.message.type_id in DEPARTS[Role.CONTROL] and not isinstance(sample.message, Goodbye):
            started_s = now()
            await here.send(sample.message)
            received = await there.receive()
            assert received == sample.message and received is not sample.message
            assert now() - started_s == pytest.approx(LATENCY_S)
    with pytest.raises(LocalProtocolError):
        await here.send(activation(0))


@simulated
async def test_data_arrives_as_the_wire_would_carry_it() -> None:
    _, elm, oak = pair()
    sender = await elm.data_to(oak)
    memory = bytearray(b"abcdef")
    sender.send(3, 7, Activation(1, STEP), [tensor("hidden_states", "int8", (3, 2), memory)])  # type: ignore[arg-type]
    memory[:] = b"zzzzzz"
    await asyncio.sleep(1)
    ((_, received),) = oak.frames
    assert (received.epoch, received.number, received.message) == (3, 7, Activation(1, STEP))
    assert bytes(received.tensors["hidden_states"].data) == b"abcdef"
    with pytest.raises(LocalProtocolError):
        sender.send(0, 0, Ping(1), [])


@simulated
async def test_order_stays_when_the_latency_falls() -> None:
    hub, elm, oak = pair()
    sender = await elm.data_to(oak)
    for number, latency_s in enumerate([1.0, 0.5, 0.001, 2.0, 0.0]):
        hub.set_latency(ELM, OAK, latency_s)
        sender.send(0, number, activation(number), [])
    sent_s = now()
    await asyncio.sleep(5)
    assert [(round(at_s - sent_s, 3), received.number) for at_s, received in oak.frames] == [
        (1.0, 0), (1.0, 1), (1.0, 2), (2.0, 3), (2.0, 4),
    ]  # fmt: skip
    assert hub.latency_s(OAK, ELM) == LATENCY_S


@simulated
async def test_goodbye_ends_both_sides_with_its_reason() -> None:
    _, elm, oak = pair()
    here, there = await elm.control_to(oak)
    await here.send(Ping(1))
    await here.close("enough")
    await here.close("again")
    assert await there.receive() == Ping(1)
    for _ in range(2):
        with pytest.raises(LinkClosedError, match="enough"):
            await there.receive()
    for dead in (here.send(Ping(2)), there.send(Ping(2)), here.receive()):
        with pytest.raises(LinkClosedError):
            await dead


@simulated
async def test_close_wakes_a_waiting_receive() -> None:
    _, elm, oak = pair()
    here, _ = await elm.control_to(oak)
    waiting = asyncio.create_task(here.receive())
    await asyncio.sleep(0.1)
    await here.close()
    with pytest.raises(LinkClosedError):
        await waiting


@simulated
async def test_a_link_closes_when_its_handler_returns_or_fails_on_the_link() -> None:
    _, elm, oak = pair()

    async def handler(link: ControlLink) -> None:
        if await link.receive() == Ping(1):
            raise RemoteProtocolError("not you")

    oak.handler = handler
    for number in (0, 1):
        here, _ = await elm.control_to(oak)
        await here.send(Ping(number))
        with pytest.raises(LinkClosedError):
            await here.receive()


@simulated
async def test_a_data_link_closed_on_purpose_tells_both_sides_once() -> None:
    _, elm, oak = pair()
    sender = await elm.data_to(oak)
    sender.send(0, 0, activation(0), [])
    sender.close()
    sender.close()
    with pytest.raises(LinkClosedError):
        sender.send(0, 1, activation(1), [])
    await asyncio.sleep(1)
    assert oak.numbers == [0]
    assert (oak.ends, elm.ends) == ([(ELM, None)], [(OAK, None)])


@simulated
async def test_a_sink_that_refuses_a_frame_ends_the_link_with_its_error() -> None:
    _, elm, oak = pair()

    def refuse(sender: NodeId, received: Received) -> None:
        raise RemoteProtocolError("a gap")

    oak.on_frame = refuse  # type: ignore[method-assign]
    sender = await elm.data_to(oak)
    sender.send(0, 3, activation(3), [])
    sender.send(0, 4, activation(4), [])
    await asyncio.sleep(1)
    ((_, error),) = oak.ends
    assert str(error) == "a gap"
    ((_, error),) = elm.ends
    assert isinstance(error, LinkClosedError)


@simulated
async def test_queues_are_bounded() -> None:
    hub, elm, oak = pair()
    sender = await elm.data_to(oak)
    here, _ = await elm.control_to(oak)
    hub.partition(OAK)
    with pytest.raises(LinkBusyError):
        for number in range(MAX_WAITING_FRAMES + 1):
            sender.send(0, number, activation(number), [])
    started_s = now()
    with pytest.raises(LinkClosedError, match="takes no more"):
        for number in range(5000):
            await here.send(Ping(number))
    assert now() - started_s == pytest.approx(10.0)


@simulated
async def test_a_reader_that_keeps_up_is_never_held_up() -> None:
    _, elm, oak = pair()
    here, there = await elm.control_to(oak)
    reading = asyncio.create_task(receive_all(there, 5000))
    for number in range(5000):
        await here.send(Ping(number))
    assert await reading == [Ping(number) for number in range(5000)]


async def test_other_threads_may_send() -> None:
    """On the real clock, as threads are."""
    _, elm, oak = pair()
    sender = await elm.data_to(oak)

    def send() -> None:
        for number in range(50):
            sender.send(0, number, activation(number), [])

    thread = threading.Thread(target=send)
    thread.start()
    async with asyncio.timeout(5):
        while len(oak.frames) < 50:
            await asyncio.sleep(0.01)
    thread.join()
    assert oak.numbers == list(range(50))
    await elm.network.close()


# --- dialling -----------------------------------------------------------------------------------------------


@simulated
async def test_addresses_are_tried_in_order() -> None:
    _, elm, oak = pair()
    link = await elm.network.dial_control([Address("nowhere", 1), oak.address], OAK)
    assert link.address == oak.address


@simulated
async def test_what_does_not_answer_is_unreachable() -> None:
    hub, elm, oak = pair()
    for addresses in ([Address("nowhere", 1)], []):
        with pytest.raises(UnreachableError):
            await elm.network.dial_control(addresses, OAK)
    hub.partition(OAK)
    started_s = now()
    with pytest.raises(UnreachableError):
        await elm.network.dial_data([oak.address], OAK, elm.on_closed)
    assert now() - started_s == pytest.approx(3.0)


@simulated
async def test_another_node_at_the_address_is_not_trusted() -> None:
    _, elm, oak = pair()
    with pytest.raises(TrustError):
        await elm.network.dial_control([oak.address, Address("nowhere", 1)], ASH)


@simulated
async def test_another_major_is_refused() -> None:
    hub, elm, _ = pair()
    ash = Node(hub, ASH, "ash", hello(ASH, "ash", major=2))
    with pytest.raises(IncompatibleError, match=r"'ash' 2\.0"):
        await elm.network.dial_control([ash.address], ASH)
    with pytest.raises(IncompatibleError):
        await ash.network.dial_data([elm.address], ELM, ash.on_closed)
    assert not ash.links


@simulated
async def test_an_address_belongs_to_one_node() -> None:
    hub, elm, _ = pair()
    with pytest.raises(ValueError, match="taken"):
        hub.network(hello(ASH, "ash"), elm.address, elm.on_control, elm)


@simulated
async def test_a_closed_network_says_goodbye_and_frees_its_address() -> None:
    hub, elm, oak = pair()
    here, _ = await elm.control_to(oak)
    await elm.data_to(oak)
    await oak.network.close()
    await oak.network.close()
    with pytest.raises(LinkClosedError, match="stopping"):
        await here.receive()
    await asyncio.sleep(1)
    ((_, error),) = elm.ends
    assert isinstance(error, LinkClosedError)
    assert oak.ends == [(ELM, None)]
    with pytest.raises(UnreachableError):
        await oak.network.dial_control([elm.address], ELM)
    with pytest.raises(UnreachableError):
        await elm.network.dial_control([oak.address], OAK)
    again = Node(hub, OAK, "oak")
    assert (await elm.control_to(again))[0].hello.name == "oak"


# --- faults -------------------------------------------------------------------------------------------------


@simulated
async def test_a_partition_is_silent_and_healing_brings_everything_in_order() -> None:
    hub, elm, oak = pair()
    here, there = await elm.control_to(oak)
    sender = await elm.data_to(oak)
    sender.send(0, 0, activation(0), [])  # under way when the line is cut
    hub.partition(OAK)
    for number in range(1, 5):
        sender.send(0, number, activation(number), [])
        await here.send(Ping(number))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60):
            await there.receive()
    assert not oak.frames and not oak.ends and not elm.ends
    hub.heal(OAK)
    sender.send(0, 5, activation(5), [])
    assert await receive_all(there, 4) == [Ping(number) for number in range(1, 5)]
    await asyncio.sleep(1)
    assert oak.numbers == [0, 1, 2, 3, 4, 5]


@simulated
async def test_a_line_stays_cut_while_either_end_is() -> None:
    hub, elm, oak = pair()
    sender = await elm.data_to(oak)
    hub.partition(OAK)
    hub.partition(ELM)
    sender.send(0, 0, activation(0), [])
    await asyncio.sleep(1)
    hub.heal(OAK)
    await asyncio.sleep(1)
    assert not oak.frames
    hub.heal(ELM)
    await asyncio.sleep(1)
    assert oak.numbers == [0]


@simulated
async def test_a_goodbye_across_a_partition_arrives_when_it_heals() -> None:
    hub, elm, oak = pair()
    here, there = await elm.control_to(oak)
    hub.partition(ELM)
    await here.close("bye")
    waiting = asyncio.create_task(there.receive())
    await asyncio.sleep(30)
    assert not waiting.done()
    hub.heal(ELM)
    with pytest.raises(LinkClosedError, match="bye"):
        await waiting


@simulated
async def test_a_node_reaches_itself_whatever_the_line_does() -> None:
    hub, elm, _ = pair()
    sender = await elm.data_to(elm)
    hub.partition(ELM)
    sender.send(0, 0, activation(0), [])
    await asyncio.sleep(1)
    assert elm.numbers == [0]


@simulated
async def test_a_killed_node_resets_its_links_at_once_and_loses_what_was_under_way() -> None:
    hub, elm, oak = pair()
    ash = Node(hub, ASH, "ash")
    here, there = await elm.control_to(oak)
    sender = await elm.data_to(oak)
    other, _ = await elm.control_to(ash)
    sender.send(0, 0, activation(0), [])
    killed_s = now()
    hub.kill(OAK)
    with pytest.raises(LinkClosedError):
        await here.receive()
    await asyncio.sleep(0)
    assert now() == killed_s
    assert [type(error) for _, error in elm.ends] == [LinkClosedError]
    with pytest.raises(LinkClosedError):
        await there.send(Ping(1))
    with pytest.raises(UnreachableError):
        await oak.network.dial_control([elm.address], ELM)
    await asyncio.sleep(1)
    assert not oak.frames
    await other.send(Ping(1))  # the others feel nothing
    assert await ash.links[0].receive() == Ping(1)
    with pytest.raises(KeyError):
        hub.kill(OAK)
    assert (await elm.control_to(Node(hub, OAK, "oak")))[0].hello.node == OAK


@simulated
async def test_a_node_killed_behind_a_partition_is_only_noticed_when_it_heals() -> None:
    hub, elm, oak = pair()
    here, _ = await elm.control_to(oak)
    await here.send(Ping(1))
    hub.partition(OAK)
    hub.kill(OAK)
    waiting = asyncio.create_task(here.receive())
    await asyncio.sleep(30)
    assert not waiting.done()
    hub.heal(OAK)
    with pytest.raises(LinkClosedError):
        await waiting


@simulated
async def test_links_that_ended_are_forgotten() -> None:
    hub, elm, oak = pair()

    async def until_closed(link: ControlLink) -> None:
        while True:
            await link.receive()

    oak.handler = until_closed
    for _ in range(50):
        here, _ = await elm.control_to(oak)
        await here.close()
        await asyncio.sleep(1)
    assert len(hub._pipes) <= 2
    assert len(elm.network._ends) <= 1
    assert not oak.network._tasks
