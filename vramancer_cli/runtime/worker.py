"""A node that works for a head: finds it, joins, obeys, reports, and joins again when it was lost.

What it does with the layers that it is given is in `worker_stage`. Never torch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from transport.contracts import ControlLink, Network, Received
from transport.errors import (
    IncompatibleError,
    LinkClosedError,
    RemoteProtocolError,
    RemovedError,
    TransportError,
    TrustError,
)
from transport.messages import (
    AskSpans,
    Assign,
    Join,
    Leaving,
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
    StatusShare,
    Welcome,
)
from transport.types import Address, LayerRange, NodeFacts, NodeId
from vramancer_cli.errors import VramancerError
from vramancer_cli.runtime.checkpoints import Checkpoints
from vramancer_cli.runtime.local_devices import LocalDevice, node_load
from vramancer_cli.runtime.renewal import Renewal
from vramancer_cli.runtime.span_inbox import told
from vramancer_cli.runtime.tasks import task_group
from vramancer_cli.runtime.worker_stage import WorkerStage
from vramancer_cli.telemetry import log

JOIN_DEADLINE_S = 10.0
MISSED_HEARTBEATS = 3
OUTBOX_BOUND = 256
RETRY_FIRST_S = 0.5
RETRY_LAST_S = 1.0
"""With a look on the network (3 s) between two tries, a head that is back is found within 5 s."""
RENEWAL_LOOK_S = 3600.0
LEAVE_S = 12.0
"""What handing its layers over may keep a node from its end; 'vramancer stop' waits a little longer."""

FindHead = Callable[[], Awaitable[Sequence[Address]]]
"""Where the head may be now, best guess first."""

Remember = Callable[[Sequence[Address]], None]


class RefusedByHeadError(VramancerError):
    """The head did not accept this node."""

    exit_code = 4


class Worker:
    """Serves one head at a time over its control link; also the DataSink of this node.

    `cluster` is its name, "" while there is no link; `status` the JSON that the head shared last.
    """

    def __init__(
        self,
        facts: Callable[[], NodeFacts],
        devices: Sequence[LocalDevice],
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self._facts = facts
        self._devices = devices
        self._log = log.get("worker")
        self._stage = WorkerStage(devices, self._report, checkpoints)
        self.recorder = devices[0].recorder
        self._session: _Session | None = None
        self._renewal: Renewal | None = None
        self.cluster = ""
        self.status = b""

    @property
    def layers(self) -> LayerRange | None:
        return self._stage.layers

    async def stay(
        self,
        network: Network,
        find_head: FindHead,
        head: NodeId,
        remember: Remember,
        renewal: Renewal | None = None,
    ) -> None:
        """Dial the head and serve it; when it is lost, dial again after a growing pause, until cancelled. Meanwhile the
        layers stay: the head that comes back mostly wants the same ones here.

        `remember` gets the head's addresses each time it let this node in; `renewal` keeps its certificate young.
        Raises RefusedByHeadError, TrustError (RemovedError, ClockError), IncompatibleError: trying again would not
        help.
        """
        self._renewal = renewal
        pause_s = RETRY_FIRST_S
        try:
            while True:
                lost = await self._serve_once(network, find_head, head, remember)
                pause_s = RETRY_FIRST_S if self.cluster else pause_s
                self._log.warning("head lost, retrying", reason=str(lost), again_in_s=pause_s)
                self.cluster = ""
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_LAST_S)
        finally:
            self._stage.let_go()

    async def leave(self) -> None:
        """Ask the head to have others take the layers over, and wait until it lets this node go; at most LEAVE_S.

        Requests go on meanwhile. Afterwards `stay` is to be cancelled.
        """
        session = self._session
        if session is not None:
            self._log.info("handing the layers over; another Ctrl-C leaves at once", layers=str(self.layers))
            await session.dismissed(LEAVE_S)

    async def _serve_once(
        self, network: Network, find_head: FindHead, head: NodeId, remember: Remember
    ) -> TransportError | TimeoutError:
        """Why the head was lost, or not found. Raises what makes trying again useless."""
        try:
            addresses = await find_head()
            if self._renewal is not None:
                await self._renewal.before_dialling(addresses)
            link = await network.dial_control(addresses, head)
            await self.serve(link, network, remember)
        except (TrustError, IncompatibleError):
            raise
        except (TransportError, TimeoutError) as error:
            return error
        raise AssertionError("serving never ends without an error")

    async def serve(self, link: ControlLink, network: Network, remember: Remember) -> None:
        """Join over `link` and serve until it ends. Raises LinkClosedError, RefusedByHeadError."""
        try:
            welcome = await self._join(link)
            remember((link.address, *(a for a in welcome.head_addresses if a != link.address)))
            silence_s = MISSED_HEARTBEATS * welcome.heartbeat_s
            self._session = _Session(self, self._stage, link, network, silence_s, self._renewal)
            await self._session.run()
        finally:
            self._session = None
            self._stage.unlink()
            await link.close("the worker left")

    async def _join(self, link: ControlLink) -> Welcome:
        await link.send(Join(self._facts()))
        async with asyncio.timeout(JOIN_DEADLINE_S):
            answer = await link.receive()
        if isinstance(answer, Removed):
            raise RemovedError
        if isinstance(answer, Refused):
            raise RefusedByHeadError(answer.reason, hint=answer.hint)
        if not isinstance(answer, Welcome):
            raise RemoteProtocolError("The head did not answer the Join.")
        self.cluster = answer.cluster
        self._log.info("joined", cluster=answer.cluster)
        return answer

    def load(self) -> NodeLoad:
        return node_load(self._devices, self._stage.steps, self._stage.links)

    def checked(self, assign: Assign) -> Assign:
        """Raises RemoteProtocolError for stages that do not exist, or on devices that do not."""
        if assign.stage >= len(assign.plan.stages):
            raise RemoteProtocolError(f"Stage {assign.stage} was assigned, of a plan of {len(assign.plan.stages)}.")
        positions = [assign.plan.stages[index].position for index in assign.plan.run(assign.stage)]
        if max(positions) >= len(self._devices) or len(set(positions)) < len(positions):
            raise RemoteProtocolError(f"Stages were assigned to the devices {positions}, of {len(self._devices)}.")
        return assign

    def _report(self, message: Message) -> None:
        if self._session is not None:
            self._session.report(message)

    # --- data links ---------------------------------------------------------------------------------------------

    def on_frame(self, sender: NodeId, received: Received) -> None:
        """An activation, on its link's thread. Raises RemoteProtocolError, which closes that link."""
        self._stage.on_frame(sender, received)

    def on_closed(self, sender: NodeId, error: TransportError | None) -> None:
        self._stage.on_closed(sender, error)


class _Session:
    """The time between Welcome and the end of one control link."""

    def __init__(
        self,
        worker: Worker,
        stage: WorkerStage,
        link: ControlLink,
        network: Network,
        silence_s: float,
        renewal: Renewal | None,
    ) -> None:
        self._worker = worker
        self._renewal = renewal
        self._stage = stage
        self._link = link
        self._network = network
        self._silence_s = silence_s
        self._outbox: asyncio.Queue[Message] = asyncio.Queue(OUTBOX_BOUND)
        self._overflowed = False
        self._epoch = 0  # last assigned
        self._loading: asyncio.Task[None] | None = None
        self._free = asyncio.Event()  # nothing is held for this head

    async def run(self) -> None:
        """Until the link ends: raises LinkClosedError, RemoteProtocolError."""
        try:
            async with task_group() as group:
                group.create_task(self._send_out(), name="worker-send")
                if self._renewal is not None:
                    group.create_task(self._ask_when_due(self._renewal), name="worker-renew")
                while True:
                    self._obey(group, await self._receive())
        finally:
            self._free.set()

    async def dismissed(self, within_s: float) -> None:
        """Until the head has let this node go, or the link has ended."""
        self._free.clear()
        self.report(Leaving())
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._free.wait()

    def report(self, message: Message) -> None:
        """Queue a message for the head. One that does not fit ends the session: the head would wait for it forever."""
        if self._outbox.full():
            self._overflowed = True
        else:
            self._outbox.put_nowait(message)

    async def _send_out(self) -> None:
        while not self._overflowed:
            await self._link.send(await self._outbox.get())
        raise LinkClosedError("The head does not take what this node reports.")

    async def _ask_when_due(self, renewal: Renewal) -> None:
        while True:
            request = renewal.request()
            if request is not None:
                self.report(Renew(request))
            await asyncio.sleep(RENEWAL_LOOK_S)

    async def _receive(self) -> Message:
        try:
            async with asyncio.timeout(self._silence_s):
                return await self._link.receive()
        except TimeoutError:
            raise LinkClosedError("The head is silent.") from None

    def _obey(self, group: asyncio.TaskGroup, message: Message) -> None:
        match message:
            case Ping():
                self.report(Pong(message.number, self._worker.load(), self._worker.recorder.clock()))
            case AskSpans():
                for part in told(self._worker.recorder, message):
                    self.report(part)
            case Assign():
                self._stop_loading()
                self._epoch = message.plan.epoch
                self._loading = group.create_task(self._hold(self._worker.checked(message)), name="worker-load")
            case Release():
                if message.epoch >= self._epoch:
                    self._stop_loading()
                    self._stage.let_go()
                    self._free.set()
            case StatusShare():
                self._worker.status = message.status
            case Roll():
                self._network.shut_out(frozenset(message.removed))
                if self._renewal is not None:
                    self._renewal.check_clock(message.head_time_s)
            case Renewed():
                if self._renewal is not None:
                    group.create_task(self._renewal.take(message.certificate), name="worker-renewed")
            case Removed():
                raise RemovedError
            case _:
                raise RemoteProtocolError(f"The head sent {type(message).__name__}, which a worker does not take.")

    async def _hold(self, assign: Assign) -> None:
        answer = await self._stage.hold(assign, self._network, self._link.address)
        if answer is not None:
            self.report(answer)

    def _stop_loading(self) -> None:
        """What the device is loading meanwhile is closed as soon as it is there, see `Holding`."""
        if self._loading is not None:
            self._loading.cancel()
            self._loading = None
