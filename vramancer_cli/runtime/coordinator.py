"""The head's mind: keeps the cluster's state, plans, assigns, starts and stops serving.

All decisions are pure functions in cluster/ and planning/; here events become state and actions become messages.
The workers' control links are in `members`, what the head itself holds in `head_parts`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from transport.clocks import Offset
from transport.contracts import ControlLink, DataSender, Network, Received
from transport.errors import LinkClosedError, TransportError
from transport.messages import Assign, Plan
from transport.types import NodeFacts, NodeId
from vramancer_cli.cluster import events, membership, reconcile
from vramancer_cli.cluster.board import service_state
from vramancer_cli.cluster.state import State, apply, in_plan
from vramancer_cli.errors import DoesNotFitError, NodeLostError, NotReadyError, UsageError
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.planning.facts import PlanSettings
from vramancer_cli.planning.placement import place
from vramancer_cli.runtime import data_links
from vramancer_cli.runtime.generation import Generation
from vramancer_cli.runtime.head_parts import HeadParts
from vramancer_cli.runtime.local_devices import LocalDevice, node_load
from vramancer_cli.runtime.members import HEARTBEAT_S, Members
from vramancer_cli.runtime.pipeline import Pipeline
from vramancer_cli.runtime.registrar import Registrar
from vramancer_cli.runtime.span_inbox import ToldSpans
from vramancer_cli.runtime.tasks import task_group
from vramancer_cli.runtime.tracing import cluster_trace
from vramancer_cli.telemetry import log
from vramancer_cli.telemetry.cluster_trace import ClusterTrace

LOOKS_PER_BEAT = 10
DRAIN_S = 600.0
"""What handing a node's layers over may take: another one may have to fetch and load them."""

_QUIET = (events.NodeHeard, events.StageFetching, events.StageLoading)
"""Events that never call for an action."""


class Coordinator:
    """One per head. `run` owns every task; the link callbacks may come before it."""

    def __init__(
        self,
        *,
        facts: NodeFacts,
        cluster: str,
        model: ModelFacts,
        settings: PlanSettings,
        folder: Path,
        devices: Sequence[LocalDevice],
        generation: Generation,
        share_status: Callable[[], bytes],
        registrar: Registrar | None = None,
    ) -> None:
        self._facts = facts
        self._settings = settings
        self._devices = devices
        self._generation = generation
        self._share_status = share_status
        self._log = log.get("coordinator")
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._news = asyncio.Event()  # of the next change
        self._registrar = registrar or Registrar()
        self._members = Members(facts, cluster, self._note, self._registrar, self._leaves)
        self._parts = HeadParts(facts.node_id, folder, devices, self._note)
        self._pipeline: Pipeline | None = None
        self._network: Network | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self.state = State()
        self._note(events.ModelChosen(model, settings))
        self._note(events.NodeJoined(facts, at=self._loop.time(), is_head=True))

    # --- tasks --------------------------------------------------------------------------------------------------

    async def run(self, network: Network) -> None:
        """Until cancelled; on the way out everything that the head holds is given back.

        Raises ModelError, and whatever else makes it impossible for the head to do its part.
        """
        self._network = network
        network.shut_out(self._registrar.removed)
        try:
            async with task_group() as self._tasks:
                self._tasks.create_task(self._reconcile(), name="reconcile")
                self._tasks.create_task(self._heartbeat(), name="heartbeat")
                self._tasks.create_task(self._watch(), name="watch")
        finally:
            self._pipeline = None
            await self._generation.stop(NotReadyError("The node is shutting down."))
            await self._parts.close()

    async def _reconcile(self) -> None:
        while True:
            self._changed.clear()
            decision = reconcile.next_actions(self.state, self._loop.time())
            for action in decision.actions:
                await self._perform(action)
            if decision.actions:
                continue
            try:
                async with asyncio.timeout_at(decision.wake_at):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _heartbeat(self) -> None:
        while True:
            self._members.ping()
            await asyncio.sleep(HEARTBEAT_S)
            self._hear_self()
            self._members.share(self._share_status())

    async def _watch(self) -> None:
        """More often than hearts beat: who falls silent is missed within 3 s, not in the next beat after them."""
        while True:
            await asyncio.sleep(HEARTBEAT_S / LOOKS_PER_BEAT)
            now = self._loop.time()
            if (self._generation.running, self._generation.waiting) != (self.state.running, self.state.waiting):
                self.activity()
            for lost in (*membership.silent(self.state, now, HEARTBEAT_S), *membership.stuck(self.state, now)):
                self._members.lose(lost.node, lost.reason)
            for rested in membership.rested(self.state, now):
                self._note(rested)

    def _hear_self(self) -> None:
        load = node_load(self._devices, 0, self._pipeline.links if self._pipeline is not None else ())
        self._note(events.NodeHeard(self._facts.node_id, self._loop.time(), load, None))

    # --- what comes in ------------------------------------------------------------------------------------------

    async def accept(self, link: ControlLink) -> None:
        """A control link came in (a ControlHandler)."""
        await self._members.accept(link)

    def on_frame(self, sender: NodeId, received: Received) -> None:
        """A frame for the pipeline, on its link's thread."""
        pipeline = self._pipeline
        if pipeline is not None:
            pipeline.on_frame(sender, received)

    def on_closed(self, sender: NodeId, error: TransportError | None) -> None:
        """A data link into the head ended, on its thread.

        One that merely broke may be of a plan long gone: its sending end knows, and reports it. Garbage is garbage.
        """
        if error is not None and not isinstance(error, LinkClosedError):
            self._loop.call_soon_threadsafe(self._members.lose, sender, f"data link: {error}")

    async def refresh(self) -> None:
        """Ask every worker, and the head itself, for its figures; waits at most members.FRESH_DEADLINE_S."""
        self._hear_self()
        await self._members.refresh()

    async def trace(self, seconds: float) -> ClusterTrace:
        """What every node did in the last `seconds`, by the head's clock."""
        recorder = self._devices[0].recorder
        told = await self._members.spans(seconds)
        own = ToldSpans(recorder.lately(seconds), Offset(0.0, 0.0))
        return cluster_trace({self._facts.node_id: own} | told, self.state, recorder.clock() - seconds, seconds)

    async def remove(self, name_or_id: str) -> NodeId:
        """Remove a node from the cluster for ever, and cut its links; what ran on it goes on as when a node is lost.

        Raises UsageError for a name that is nobody's or several nodes', and for the head; StateFolderError.
        """
        node = self._registrar.find(name_or_id, self._present())
        if node == self._facts.node_id:
            raise UsageError("The master cannot be removed from its own cluster.", hint="'vramancer stop' ends it.")
        await self._registrar.off_loop(partial(self._registrar.remove, node))
        if self._network is not None:
            self._network.shut_out(self._registrar.removed)
        self._members.remove(node)
        return node

    async def drain(self, name_or_id: str) -> NodeId:
        """Have other nodes take a node's layers over while requests go on; it stays in the cluster and holds nothing.

        Returns once it holds nothing. Raises UsageError as `remove`, and for a node that is not there; DoesNotFitError
        where nobody can take them; NotReadyError where it did not come to that within DRAIN_S.
        """
        node = self._registrar.find(name_or_id, self._present())
        record = self.state.nodes.get(node)
        if node == self._facts.node_id:
            raise UsageError("The master holds the requests themselves: nobody else can take them over.")
        if record is None or not record.alive:
            raise UsageError(f"'{name_or_id}' is not there.", hint="See 'vramancer nodes'.")
        if in_plan(self.state, node):
            self._placed(reconcile.plan_without(self.state, node))
        self._note(events.NodeDraining(node))
        try:
            async with asyncio.timeout(DRAIN_S):
                while self._drains(node):
                    await self._news.wait()
        except TimeoutError:
            raise NotReadyError(f"'{record.facts.name}' still holds layers after {DRAIN_S / 60:.0f} minutes.") from None
        return node

    def _drains(self, node: NodeId) -> bool:
        """Whether it still holds something. Raises NotReadyError when it cannot be spared any more."""
        record = self.state.nodes[node]
        if record.alive and not record.draining:
            raise NotReadyError(f"'{record.facts.name}' cannot be spared any more.")
        return record.alive and (record.stage is not None or in_plan(self.state, node))

    def _leaves(self, node: NodeId) -> None:
        """A worker is about to end. It may at once where it holds nothing, or nobody can take what it holds."""
        if in_plan(self.state, node):
            try:
                self._placed(reconcile.plan_without(self.state, node))
            except DoesNotFitError as error:
                self._log.warning("nobody can take its layers", node=node, reason=str(error))
            else:
                self._note(events.NodeDraining(node))
                return
        self._members.release(node, self.state.epoch)

    def _present(self) -> dict[NodeId, str]:
        return {node: record.facts.name for node, record in self.state.nodes.items()}

    def activity(self) -> None:
        """Requests came or went."""
        self._note(events.BusyChanged(self._generation.running, self._generation.waiting))

    def _note(self, event: events.Event) -> None:
        was_sound = self.state.broken is None
        self.state = apply(self.state, event)
        if was_sound and self.state.broken is not None:
            self._members.plan_ended()
        if not isinstance(event, _QUIET):
            self._changed.set()
            news, self._news = self._news, asyncio.Event()
            news.set()

    # --- actions ------------------------------------------------------------------------------------------------

    async def _perform(self, action: reconcile.Action) -> None:
        match action:
            case reconcile.MakePlan():
                self._make_plan(action)
            case reconcile.Assign():
                self._assign(action)
            case reconcile.StartServing():
                await self._start(action.plan)
            case reconcile.StopServing():
                await self._stop(action)
            case reconcile.EndRequests():
                await self._end_requests(action)
            case reconcile.Release():
                self._release(action)

    def _make_plan(self, action: reconcile.MakePlan) -> None:
        now = self._loop.time()
        try:
            plan = self._placed(action)
        except DoesNotFitError as error:
            self._note(events.PlanFailed(str(error), error.missing_bytes, now))
            reason = service_state(self.state)[1]
            self._generation.wait_for(reason)
            self._log.info("model does not fit yet", reason=reason)
            return
        self._generation.wait_for("The model is being loaded onto the nodes.")
        self._log.info("planned", epoch=plan.epoch, stages=len(plan.stages))
        self._note(events.Planned(plan, now))

    def _placed(self, action: reconcile.MakePlan) -> Plan:
        """Raises DoesNotFitError."""
        assert self.state.model is not None
        return place(self.state.model, action.devices, self._facts.node_id, self._settings, action.epoch)

    def _assign(self, action: reconcile.Assign) -> None:
        plan, node = action.plan, action.node
        self._note(events.Assigned(node, plan.epoch, self._loop.time()))
        if node == self._facts.node_id:
            assert self._tasks is not None
            self._tasks.create_task(self._parts.load_stages(plan, action.stage), name="load-stages")
            return
        planned = {plan.ends, *plan.firsts()}
        addresses = {node: self.state.nodes[node].facts.addresses for node in planned}
        self._members.assign(node, Assign(plan, action.stage, addresses))

    def _release(self, action: reconcile.Release) -> None:
        if action.node == self._facts.node_id:
            self._parts.drop_stages()
        else:
            self._members.release(action.node, action.epoch)
        self._note(events.Released(action.node, action.epoch))

    async def _stop(self, action: reconcile.StopServing) -> None:
        """Requests outlive the plan, unless what broke is nothing that other nodes would do better."""
        kept = action.kind != "error"
        self._log.warning("serving stopped", reason=action.reason, requests="wait" if kept else "end")
        if kept:
            to_blame, broken = action.kind == "failed", action.kind != "moved"
            await self._generation.pause(self._told(action), broken=broken, to_blame=to_blame)
        else:
            await self._generation.stop(self._told(action))
        self._pipeline = None
        self._parts.unlink()
        self._note(events.ServingStopped(action.epoch, action.reason, self._loop.time(), kept, action.node))

    async def _end_requests(self, action: reconcile.EndRequests) -> None:
        self._log.warning("requests end", reason=action.reason)
        await self._generation.stop(self._told(action))
        self._note(events.RequestsEnded())

    def _told(self, action: reconcile.StopServing | reconcile.EndRequests) -> NodeLostError | NotReadyError:
        """What those hear who wait, or whose answers end."""
        if action.node is None:
            return NotReadyError(action.reason)
        return NodeLostError(action.reason, node=self.state.nodes[action.node].facts.name)

    # --- serving ------------------------------------------------------------------------------------------------

    async def _start(self, plan: Plan) -> None:
        """Load the ends, dial the stages that the head feeds, and serve, if the plan still stands then."""
        ends = await self._parts.load_ends(plan)
        senders = await self._dial_onward(plan) if ends is not None else None
        if ends is None or senders is None or not self._stands(plan):
            self._parts.unlink()
            return
        self._pipeline = Pipeline(
            plan,
            head=self._facts.node_id,
            devices=self._devices,
            ends=ends,
            stages=self._parts.stages,
            senders=senders,
            on_failed=partial(self._pipeline_failed, plan),
        )
        self._generation.serve(plan, self._pipeline, partial(self._broke, plan))
        self._note(events.ServingStarted(plan.epoch))
        self._log.info("ready", epoch=plan.epoch, stages=len(plan.stages))

    def _stands(self, plan: Plan) -> bool:
        active = self.state.active_plan
        return active is not None and active.epoch == plan.epoch and self.state.broken is None

    async def _dial_onward(self, plan: Plan) -> dict[NodeId, DataSender] | None:
        fed = self._fed_by_head(plan)
        senders = await asyncio.gather(*(self._dial(plan, node) for node in fed))
        return {node: sender for node, sender in zip(fed, senders, strict=True) if sender} if all(senders) else None

    async def _dial(self, plan: Plan, node: NodeId) -> DataSender | None:
        assert self._network is not None
        addresses = self.state.nodes[node].facts.addresses

        def closed(_node: NodeId, error: TransportError | None) -> None:
            if error is not None:
                self._loop.call_soon_threadsafe(self._link_broke, plan, node, error)

        try:
            sender = await data_links.dial(self._network, addresses, node, closed)
        except TransportError as error:
            self._members.lose(node, str(error))
            return None
        sender.watch(self._devices[0].recorder.sending(max(0, plan.firsts()[node] - 1)))
        self._parts.keep(sender)
        return sender

    def _fed_by_head(self, plan: Plan) -> list[NodeId]:
        """Nodes whose input comes from the head: after its own stages, or relayed."""
        fed: list[NodeId] = []
        previous_direct = False  # the head's ends come before stage 0
        for node in plan.firsts():
            if node == self._facts.node_id:
                previous_direct = False
                continue
            if not previous_direct:
                fed.append(node)
            previous_direct = self.state.nodes[node].direct
        return fed

    def _link_broke(self, plan: Plan, node: NodeId, error: TransportError) -> None:
        if self._stands(plan):
            self._members.lose(node, f"data link: {error}")

    def _pipeline_failed(self, plan: Plan, node: NodeId, error: BaseException) -> None:
        if node == self._facts.node_id:
            self._broke(plan, error)
        elif self._stands(plan):
            self._members.lose(node, str(error))

    def _broke(self, plan: Plan, error: BaseException) -> None:
        """Something failed on the head itself: stop honestly, then plan again."""
        self._log.error("generation stopped", exc_info=error)
        self._note(events.ServingBroke(plan.epoch, str(error)))
