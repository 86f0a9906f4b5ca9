"""A coordinator and its workers without links: performs `next_actions` on real plans and checks every step."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.helpers.cluster_invariants import validate
from tests.helpers.planning_values import HEAD, node_facts, node_id
from transport.messages import Plan
from transport.types import NodeFacts, NodeId
from vramancer_cli.cluster import events, reconcile
from vramancer_cli.cluster.state import State, apply, considering
from vramancer_cli.errors import DoesNotFitError
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.planning.facts import PlanSettings
from vramancer_cli.planning.placement import place
from vramancer_cli.planning.plan import held_bytes

MOST_ROUNDS = 50


@dataclass(slots=True)
class Worker:
    """`present`: the bytes that each of its devices really has, whatever it said when it joined.

    `overhead_bytes`: what it needs beyond the planner's count.
    """

    facts: NodeFacts
    present: tuple[int, ...]
    overhead_bytes: int = 0
    loading: Plan | None = None
    held: Plan | None = None


@dataclass(slots=True)
class ClusterBench:
    """The world around a State. `actions` is the story of all actions so far."""

    now: float = 100.0
    state: State = field(default_factory=State)
    workers: dict[NodeId, Worker] = field(default_factory=dict[NodeId, Worker])
    serving: Plan | None = None
    actions: list[reconcile.Action] = field(default_factory=list[reconcile.Action])

    # --- what happens -------------------------------------------------------------------------------------------

    def choose(self, facts: ModelFacts, settings: PlanSettings) -> None:
        self.note(events.ModelChosen(facts, settings))

    def join(self, facts: NodeFacts, *present: int, overhead_bytes: int = 0) -> None:
        present = present or tuple(device.limit_bytes for device in facts.devices)
        self.workers[facts.node_id] = Worker(facts, present, overhead_bytes)
        self.note(events.NodeJoined(facts, self.now, is_head=facts.node_id == HEAD))

    def join_number(self, number: int, limit_bytes: int, present_bytes: int | None = None) -> None:
        self.join(node_facts(number, limit_bytes), *(() if present_bytes is None else (present_bytes,)))

    def lose(self, number: int, reason: str = "unplugged") -> None:
        self.workers.pop(node_id(number), None)
        self.note(events.NodeLost(node_id(number), reason, self.now))

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def note(self, event: events.Event) -> None:
        self.state = apply(self.state, event)
        validate(self.state)

    def answer(self, node: NodeId) -> bool:
        """The worker ends its load: ready, or refused for what is really present. False when it loads nothing."""
        worker = self.workers[node]
        plan, worker.loading = worker.loading, None
        if plan is None:
            return False
        planned = held_bytes(plan)
        for position, present_bytes in enumerate(worker.present):
            needed_bytes = planned.get((node, position), 0) + worker.overhead_bytes
            if (node, position) in planned and needed_bytes > present_bytes:
                refused = (plan.epoch, needed_bytes, present_bytes, "not enough memory", position)
                self.note(events.StageRefused(node, *refused))
                return True
        worker.held = plan
        self.note(events.StageBecameReady(node, plan.epoch, direct=True))
        return True

    # --- what the coordinator does ------------------------------------------------------------------------------

    def reconcile(self) -> list[reconcile.Action]:
        """Performs actions until nothing is left to do now; returns them."""
        done: list[reconcile.Action] = []
        for _ in range(MOST_ROUNDS):
            decision = reconcile.next_actions(self.state, self.now)
            assert decision.wake_at is None or decision.wake_at > self.now or decision.actions
            if not decision.actions:
                self.actions.extend(done)
                return done
            for action in decision.actions:
                self._perform(action)
                done.append(action)
        raise AssertionError(f"no end of actions: {done[-5:]}")

    def run_until_quiet(self) -> None:
        """Time passes, every load is answered, until nothing moves any more, nor will."""
        for _ in range(MOST_ROUNDS):
            self.wait(reconcile.SETTLE_S)
            moved = bool(self.reconcile())
            for node in sorted(self.workers):
                moved |= self.answer(node)
            if not moved:
                wake_at = reconcile.next_actions(self.state, self.now).wake_at
                if wake_at is None:
                    return
                self.now = wake_at
        raise AssertionError("the cluster never comes to rest")

    def _perform(self, action: reconcile.Action) -> None:
        match action:
            case reconcile.MakePlan():
                self._make_plan(action)
            case reconcile.Assign():
                self._assign(action)
            case reconcile.StartServing():
                self._start(action.plan)
            case reconcile.StopServing():
                assert self.serving is not None and self.serving.epoch == action.epoch
                self.serving = None
                kept = action.kind != "error"
                self.note(events.ServingStopped(action.epoch, action.reason, self.now, kept, action.node))
            case reconcile.EndRequests():
                self.note(events.RequestsEnded())
            case reconcile.Release():
                self._release(action)

    def _make_plan(self, action: reconcile.MakePlan) -> None:
        assert action.epoch > self.state.epoch
        planned_with = {device.place: device.limit_bytes for device in action.devices}
        considered = considering(self.state)
        assert planned_with == {(node, i): limit for node, limits in considered for i, limit in enumerate(limits)}
        assert self.state.model is not None and self.state.settings is not None
        try:
            plan = place(self.state.model, action.devices, HEAD, self.state.settings, action.epoch)
        except DoesNotFitError as error:
            self.note(events.PlanFailed(str(error), error.missing_bytes, self.now))
        else:
            self.note(events.Planned(plan, self.now))

    def _assign(self, action: reconcile.Assign) -> None:
        worker = self.workers[action.node]
        assert action.plan.stages[action.stage].node == action.node
        assert self.serving is None, "assigned while an older plan serves"
        worker.loading, worker.held = action.plan, None
        self.note(events.Assigned(action.node, action.plan.epoch, self.now))

    def _start(self, plan: Plan) -> None:
        assert self.serving is None, "two plans serving"
        held = [self.workers[stage.node].held for stage in plan.stages]
        assert all(own is not None and own.epoch == plan.epoch for own in held), "served before all were ready"
        self.serving = plan
        self.note(events.ServingStarted(plan.epoch))

    def _release(self, action: reconcile.Release) -> None:
        serving = {stage.node for stage in self.serving.stages} if self.serving is not None else set[NodeId]()
        assert action.node not in serving, "released while serving"
        worker = self.workers[action.node]
        worker.loading = worker.held = None
        self.note(events.Released(action.node, action.epoch))

    # --- what can be seen ---------------------------------------------------------------------------------------

    def made(self) -> list[reconcile.MakePlan]:
        return [action for action in self.actions if isinstance(action, reconcile.MakePlan)]
