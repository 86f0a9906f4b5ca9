"""A network in memory, for simulations: the same interfaces, protocol state and codec as real links, no socket.

Time comes only from the running event loop, so that a virtual-time loop drives a whole cluster. Every message is
encoded and decoded: what is simulated is what the wire would carry. Never threads of its own, never a real clock.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from transport.connection import Connection, Role
from transport.contracts import Closed, ControlHandler, DataSink, OnSent, Received, TensorBuffer
from transport.errors import LinkBusyError, LinkClosedError, TransportError, TrustError, UnreachableError
from transport.messages import Goodbye, Hello, Message
from transport.types import Address, NodeId

CONNECT_DEADLINE_S: Final = 3.0
SEND_DEADLINE_S: Final = 10.0
MAX_WAITING_FRAMES: Final = 64
MAX_WAITING_MESSAGES: Final = 1024
CONNECT_TRIPS: Final = 6
"""One-way trips until a link stands: TCP, TLS 1.3 and the Hellos take a round trip each."""


class InprocHub:
    """The medium between in-memory nodes, with the faults that a test wants."""

    def __init__(self, latency_s: float = 0.0005) -> None:
        self._default_latency_s = latency_s
        self._latencies_s: dict[tuple[NodeId, NodeId], float] = {}
        self._cut: set[NodeId] = set()
        self._networks: dict[Address, InprocNetwork] = {}
        self._pipes: list[_Pipe] = []

    def network(self, hello: Hello, address: Address, on_control: ControlHandler, sink: DataSink) -> InprocNetwork:
        """A node, answering at `address` from now on. Raises ValueError if another one answers there."""
        if address in self._networks:
            raise ValueError(f"{address} is taken.")
        network = InprocNetwork(self, hello, address, on_control, sink)
        self._networks[address] = network
        return network

    def set_latency(self, source: NodeId, target: NodeId, latency_s: float) -> None:
        """One way, for what is sent from now on. The order on a link stays."""
        self._latencies_s[source, target] = latency_s

    def latency_s(self, source: NodeId, target: NodeId) -> float:
        return self._latencies_s.get((source, target), self._default_latency_s)

    def partition(self, node: NodeId) -> None:
        """Silence: nothing to or from the node arrives and nothing closes. What is sent meanwhile waits, as in TCP."""
        self._cut.add(node)

    def heal(self, node: NodeId) -> None:
        self._cut.discard(node)
        for pipe in self._pipes:
            if node in (pipe.source, pipe.target):
                pipe.resume()

    def kill(self, node: NodeId) -> None:
        """The machine's process dies: its links close at once, what is under way is lost, its address is free.

        Its own code is not stopped: whatever it tries from now on fails. Raises KeyError if there is no such node.
        """
        network = next((network for network in self._networks.values() if network.node == node), None)
        if network is None:
            raise KeyError(node)
        network.die()
        for pipe in self._pipes:
            if node in (pipe.source, pipe.target):
                pipe.reset()

    def separated(self, source: NodeId, target: NodeId) -> bool:
        return source != target and not self._cut.isdisjoint((source, target))

    def at(self, address: Address) -> InprocNetwork | None:
        return self._networks.get(address)

    def leave(self, network: InprocNetwork) -> None:
        if self._networks.get(network.address) is network:
            del self._networks[network.address]

    def pipes(self, source: NodeId, target: NodeId) -> tuple[_Pipe, _Pipe]:
        """A new pair: there and back."""
        self._pipes = [pipe for pipe in self._pipes if not pipe.finished]
        pair = (_Pipe(self, source, target), _Pipe(self, target, source))
        self._pipes.extend(pair)
        return pair


class InprocNetwork:
    """A `contracts.Network`: one node on a hub. Made by `InprocHub.network`."""

    def __init__(
        self, hub: InprocHub, hello: Hello, address: Address, on_control: ControlHandler, sink: DataSink
    ) -> None:
        self._hub = hub
        self.hello = hello
        self._on_control = on_control
        self._sink = sink
        self._ends: list[_End] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = True
        self._shut_out: frozenset[NodeId] = frozenset()
        self.address = address

    @property
    def node(self) -> NodeId:
        return self.hello.node

    async def dial_control(self, addresses: Sequence[Address], expected: NodeId) -> InprocControlLink:
        """See `contracts.Network`; a separated node costs CONNECT_DEADLINE_S per address."""
        target = await self._reach(addresses, expected)
        here, there = self._greet(target, expected, Role.CONTROL, Role.CONTROL)
        out, back = self._hub.pipes(self.node, target.node)
        link = InprocControlLink(here, back, out, target.address)
        self._keep(link)
        target.accept_control(InprocControlLink(there, out, back, self.address))
        return link

    async def dial_data(self, addresses: Sequence[Address], expected: NodeId, on_closed: Closed) -> InprocDataSender:
        target = await self._reach(addresses, expected)
        if expected in self._shut_out or self.node in target._shut_out:
            raise TrustError(f"Node {expected[:8]} was removed from the cluster, or takes this one for removed.")
        here, there = self._greet(target, expected, Role.DATA_SENDER, Role.DATA_RECEIVER)
        out, back = self._hub.pipes(self.node, target.node)
        sender = InprocDataSender(here, back, out, expected, on_closed)
        self._keep(sender)
        target.accept_data(there, out, back, self.node)
        return sender

    def accept_control(self, link: InprocControlLink) -> None:
        self._keep(link)
        task = asyncio.get_running_loop().create_task(self._serve(link))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def accept_data(self, connection: Connection, inbound: _Pipe, outbound: _Pipe, sender: NodeId) -> None:
        self._keep(_DataReceiver(connection, inbound, outbound, sender, self._sink))

    async def close(self) -> None:
        """Say Goodbye on every link, stop what serves them, and free the address. Again: no effect."""
        self._open = False
        self._hub.leave(self)
        for end in self._ends:
            end.finish("The node is stopping.")
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=SEND_DEADLINE_S)

    def shut_out(self, nodes: frozenset[NodeId]) -> None:
        """See `contracts.Network`."""
        self._shut_out = nodes
        for end in self._ends:
            if end.node in nodes and not isinstance(end, InprocControlLink):
                end.end(LinkClosedError("That node was removed from the cluster."), None)

    def die(self) -> None:
        self._open = False
        self._hub.leave(self)
        for end in self._ends:
            error = LinkClosedError("The node was killed.")
            end.end(error, error)

    def _keep(self, end: _End) -> None:
        self._ends = [kept for kept in self._ends if kept.ended is None]
        self._ends.append(end)

    async def _serve(self, link: InprocControlLink) -> None:
        try:
            with suppress(TransportError):
                await self._on_control(link)
        finally:
            link.finish("")

    async def _reach(self, addresses: Sequence[Address], expected: NodeId) -> InprocNetwork:
        """The first of the addresses that answers as `expected`."""
        failure: TransportError = UnreachableError()
        for address in addresses:
            try:
                return await self._reach_one(address, expected)
            except UnreachableError as error:
                failure = failure if isinstance(failure, TrustError) else error
            except TrustError as error:
                failure = error
        raise failure

    async def _reach_one(self, address: Address, expected: NodeId) -> InprocNetwork:
        target = self._hub.at(address)
        if target is not None and self._hub.separated(self.node, target.node):
            await asyncio.sleep(CONNECT_DEADLINE_S)
        else:
            await asyncio.sleep(CONNECT_TRIPS * self._hub.latency_s(self.node, expected))
        target = self._hub.at(address)
        if target is None or not self._open or self._hub.separated(self.node, target.node):
            raise UnreachableError(f"No node answers at {address}.")
        if target.node != expected:
            raise TrustError(f"The node at {address} is {target.node[:8]}, not {expected[:8]}.")
        return target

    def _greet(
        self, target: InprocNetwork, expected: NodeId, role: Role, other_role: Role
    ) -> tuple[Connection, Connection]:
        """Both ends of a link after their Hellos. Raises IncompatibleError, RemoteProtocolError."""
        here = Connection(role, self.hello, expected)
        there = Connection(other_role, target.hello, self.node)
        _receive(here, there.greeting())
        _receive(there, here.greeting())
        return here, there


class _Pipe:
    """One direction of one link: an ordered stream of frames with a latency. `None` in it is the stream's end."""

    def __init__(self, hub: InprocHub, source: NodeId, target: NodeId) -> None:
        self._hub = hub
        self.loop = asyncio.get_running_loop()
        self._waiting: deque[bytes | None] = deque()
        self._held = 0
        self._last_s = 0.0
        self.source = source
        self.target = target
        self.arrive: Callable[[bytes | None], None] | None = None
        self.room = asyncio.Semaphore(MAX_WAITING_MESSAGES)
        self.finished = False

    @property
    def backlog(self) -> int:
        return len(self._waiting)

    def push(self, data: bytes | None) -> None:
        """From any thread."""
        self._waiting.append(data)
        if _is_running(self.loop):
            self._schedule()
        else:
            self.loop.call_soon_threadsafe(self._schedule)

    def resume(self) -> None:
        """Deliver what was held back, if nothing else holds it."""
        held, self._held = self._held, 0
        for _ in range(held):
            self._schedule()

    def reset(self) -> None:
        """Lose what is under way; the far end hears of the end as soon as it can hear."""
        self._waiting.clear()
        self._waiting.append(None)
        self.loop.call_soon(self._deliver_next)

    def _schedule(self) -> None:
        arrival_s = self.loop.time() + self._hub.latency_s(self.source, self.target)
        self._last_s = max(self._last_s, arrival_s)
        self.loop.call_at(self._last_s, self._deliver_next)

    def _deliver_next(self) -> None:
        if self.finished or not self._waiting:
            return
        if self._hub.separated(self.source, self.target):
            self._held += 1
            return
        data = self._waiting.popleft()
        self.finished = data is None
        if self.arrive is not None:
            self.arrive(data)


def _is_running(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _receive(connection: Connection, data: bytes) -> Received | None:
    """A pipe's item is one whole frame."""
    connection.parser.feed(data)
    frame = connection.parser.next_event()
    assert frame is not None, "pipes carry whole frames"
    return connection.receive(frame)


class _End(ABC):
    """One end of a link. `ended` is why it takes no more, once it does not."""

    def __init__(self, connection: Connection, inbound: _Pipe, outbound: _Pipe) -> None:
        self._connection = connection
        self._inbound = inbound
        self._outbound = outbound
        self.ended: TransportError | None = None
        inbound.arrive = self.arrive

    @property
    def hello(self) -> Hello:
        return self._connection.hello

    @property
    def node(self) -> NodeId:
        """The one at the other end."""
        return self._inbound.source

    @abstractmethod
    def arrive(self, data: bytes | None) -> None:
        """The pipe delivers a frame, or with None its end."""

    @abstractmethod
    def tell(self, error: TransportError | None) -> None:
        """Whoever watches this end learns of the end: None for one on purpose."""

    def finish(self, reason: str) -> None:
        """Close on purpose: Goodbye, then the end of the stream. Again: no effect."""
        if self.ended is None:
            with suppress(TransportError):
                head, _ = self._connection.send(Goodbye(reason))
                self._outbound.push(head)
            self.end(LinkClosedError(reason or "The link was closed here."), None)

    def end(self, ended: TransportError, error: TransportError | None) -> None:
        """Take no more from here on, and `tell(error)`. Again: no effect."""
        if self.ended is None:
            self.ended = ended
            self._outbound.push(None)
            self.tell(error)


class InprocControlLink(_End):
    """A `contracts.ControlLink` in memory."""

    def __init__(self, connection: Connection, inbound: _Pipe, outbound: _Pipe, address: Address) -> None:
        super().__init__(connection, inbound, outbound)
        self._inbox: asyncio.Queue[bytes | None] = asyncio.Queue()  # bounded by the pipe's room
        self._address = address

    @property
    def address(self) -> Address:
        return self._address

    async def send(self, message: Message) -> None:
        """See `contracts.ControlLink`. Waits while MAX_WAITING_MESSAGES are not yet taken at the other end."""
        if self.ended:
            raise self.ended
        head, _ = self._connection.send(message)
        try:
            async with asyncio.timeout(SEND_DEADLINE_S):
                await self._outbound.room.acquire()
        except TimeoutError as timeout:
            error = LinkClosedError("The link to the other machine broke: it takes no more messages.")
            self.end(error, error)
            raise error from timeout
        if self.ended:
            raise self.ended
        self._outbound.push(head)

    async def receive(self) -> Message:
        received = None
        while received is None:
            if self.ended:
                raise self.ended
            data = await self._inbox.get()
            self._inbound.room.release()
            received = self._read(data)
        return received.message

    async def close(self, reason: str = "") -> None:
        self.finish(reason)

    def arrive(self, data: bytes | None) -> None:
        self._inbox.put_nowait(data)

    def tell(self, error: TransportError | None) -> None:
        self._inbox.put_nowait(None)  # wakes a waiting receive

    def _read(self, data: bytes | None) -> Received | None:
        """None for a message to skip. Raises what the link ended with."""
        error: TransportError = self.ended or LinkClosedError()
        if data is not None and self.ended is None:
            try:
                received = _receive(self._connection, data)
            except TransportError as caught:
                error = caught
            else:
                if received is None or not isinstance(received.message, Goodbye):
                    return received
                error = LinkClosedError(received.message.reason or "The other machine closed the link.")
        self.end(error, error)
        raise error


class InprocDataSender(_End):
    """A `contracts.DataSender` in memory. `send` copies; `on_closed` runs on the loop."""

    def __init__(
        self, connection: Connection, inbound: _Pipe, outbound: _Pipe, node: NodeId, on_closed: Closed
    ) -> None:
        super().__init__(connection, inbound, outbound)
        self._node = node
        self._on_closed = on_closed
        self.bytes_per_s = 0  # memory is not measured

    def send(self, epoch: int, number: int, message: Message, tensors: Sequence[TensorBuffer]) -> None:
        if self.ended:
            raise LinkClosedError
        if self._outbound.backlog >= MAX_WAITING_FRAMES:
            raise LinkBusyError
        head, payload = self._connection.send(message, epoch, number, tensors)
        self._outbound.push(b"".join([head, *payload]))

    def watch(self, on_sent: OnSent) -> None:
        """Sending takes no time here: there is nothing to tell."""

    def close(self) -> None:
        self.finish("")

    def arrive(self, data: bytes | None) -> None:
        error = LinkClosedError("The other machine closed the data link." if data else "")
        self.end(error, error)

    def tell(self, error: TransportError | None) -> None:
        self._inbound.loop.call_soon_threadsafe(self._on_closed, self._node, error)


class _DataReceiver(_End):
    """The receiving end of a data link: decodes, and calls the sink on the loop."""

    def __init__(self, connection: Connection, inbound: _Pipe, outbound: _Pipe, sender: NodeId, sink: DataSink) -> None:
        super().__init__(connection, inbound, outbound)
        self._sender = sender
        self._sink = sink

    def arrive(self, data: bytes | None) -> None:
        if self.ended is not None:
            return
        try:
            self._deliver(data)
        except TransportError as error:
            self.end(error, error)

    def tell(self, error: TransportError | None) -> None:
        self._inbound.loop.call_soon_threadsafe(self._sink.on_closed, self._sender, error)

    def _deliver(self, data: bytes | None) -> None:
        if data is None:
            raise LinkClosedError
        received = _receive(self._connection, data)
        if received is not None and isinstance(received.message, Goodbye):
            self.end(LinkClosedError(received.message.reason), None)
        elif received is not None:
            self._sink.on_frame(self._sender, received)
