"""What the cluster is: `State`, and `apply(state, event) -> State`, pure and total.

An event that is late (of an older epoch, of a node that is gone) changes nothing. What to do about a state is
decided in `reconcile`. Never sockets, clocks, torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, assert_never

from transport.messages import Plan
from transport.types import NodeId
from vramancer_cli.cluster import events
from vramancer_cli.cluster.capacity import load_bytes_per_s, present
from vramancer_cli.cluster.records import (
    QUARANTINE_S,
    Candidate,
    Failure,
    Interruption,
    NodeRecord,
    PlanBreak,
    Quarantine,
    StageRecord,
    Trouble,
)
from vramancer_cli.cluster.shrink import SHARE, shrunk
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.planning.facts import Place, PlanSettings
from vramancer_cli.planning.plan import held_bytes, same_deployment, weights_bytes, with_reasons
from vramancer_cli.planning.worth import Traffic, declined_reasons, worth_moving

_BELIEVED: Final = 1.05
"""So many times as long a round trip is taken for the network's, with each one that is longer."""


@dataclass(frozen=True, slots=True)
class State:
    """`epoch`: the highest ever given. `considered`: what the last planning had before it; None: plan in any case.
    `declined`: with what, and whether requests waited, a plan was made that was not worth a pause of those who ran.
    `planned_at`: when the last planning was; `tried_speeds`: what a layer took on each device by then.

    `active_plan` is the one loading or serving; with `broken` it only waits to be replaced. `serving_epoch` may
    still be an older plan's until that one has been stopped. `interruption`: what it served before waits meanwhile.
    """

    model: ModelFacts | None = None
    settings: PlanSettings | None = None
    nodes: Mapping[NodeId, NodeRecord] = field(default_factory=dict[NodeId, NodeRecord])
    epoch: int = 0
    active_plan: Plan | None = None
    broken: PlanBreak | None = None
    considered: frozenset[Candidate] | None = None
    declined: tuple[frozenset[Candidate], bool] | None = None
    planned_at: float = 0.0
    tried_speeds: Mapping[Place, float] = field(default_factory=dict[Place, float])
    failure: Failure | None = None
    interruption: Interruption | None = None
    serving_epoch: int | None = None
    running: int = 0
    waiting: int = 0
    running_tokens: int = 0
    last_join_at: float = 0.0

    @property
    def head(self) -> NodeRecord | None:
        return next((record for record in self.nodes.values() if record.is_head), None)

    def stage_ready(self, node: NodeId) -> bool:
        """Whether the node holds its stage of the active plan."""
        record, plan = self.nodes.get(node), self.active_plan
        if record is None or record.stage is None or plan is None:
            return False
        return record.stage.epoch == plan.epoch and record.stage.status == "ready"


def prefers_speed(state: State) -> bool:
    """Whether plans are made by measured speed."""
    return state.settings is not None and state.settings.prefer == "speed"


def mismatch(state: State, record: NodeRecord) -> str | None:
    """Why the node may not compute together with the head; None when it may."""
    if state.head is None:
        return "there is no head yet"
    own, heads = record.facts.versions, state.head.facts.versions
    if (own.torch, own.transformers) == (heads.torch, heads.transformers):
        return None
    return (
        f"it computes with torch {own.torch} and transformers {own.transformers}, "
        f"the head with {heads.torch} and {heads.transformers}"
    )


def candidates(state: State) -> dict[NodeId, NodeRecord]:
    """The nodes that a plan made now may use."""
    present = ((node, record) for node, record in state.nodes.items() if record.alive and not record.draining)
    trusted = ((node, record) for node, record in present if not record.resting and record.quarantine is None)
    return {node: record for node, record in trusted if mismatch(state, record) is None}


def considering(state: State) -> frozenset[Candidate]:
    """What a plan made now would have before it."""
    return frozenset((node, record.limits) for node, record in candidates(state).items())


def apply(state: State, event: events.Event) -> State:
    """The state after the event."""
    match event:
        case events.ModelChosen():
            return _model_chosen(state, event)
        case events.NodeJoined():
            return _joined(state, event)
        case events.NodeHeard():
            return _heard(state, event)
        case events.NodeLost():
            return _lost(state, event)
        case events.NodeRested():
            return _rested(state, event.node)
        case events.NodeQuarantined():
            return _quarantined(state, event)
        case events.QuarantineEnded():
            return _quarantine_ended(state, event.node)
        case events.NodeDraining():
            return _draining(state, event.node)
        case events.Planned():
            return _planned(state, event)
        case events.PlanFailed():
            return _plan_failed(_tried(state, event.at), Failure(event.reason, event.missing_bytes, event.at))
        case events.Assigned():
            return _assigned(state, event)
        case events.StageFetching() | events.StageLoading() | events.StageBecameReady():
            return _stage_progressed(state, event)
        case events.StageRefused():
            return _refused(state, event)
        case events.WeightsAhead():
            return _ahead(state, event)
        case events.Released():
            return _released(state, event.node, event.epoch)
        case events.ServingStarted():
            return _serving_started(state, event.epoch)
        case events.ServingBroke():
            return _serving_broke(state, event)
        case events.ServingStopped():
            return _serving_stopped(state, event)
        case events.RequestsEnded():
            return replace(state, interruption=None)
        case events.BusyChanged():
            counts = max(0, event.running), max(0, event.waiting), max(0, event.running_tokens)
            return replace(state, running=counts[0], waiting=counts[1], running_tokens=counts[2])
        case _:
            assert_never(event)


# --- model and nodes ------------------------------------------------------------------------------------------------


def _model_chosen(state: State, event: events.ModelChosen) -> State:
    if (state.model, state.settings) == (event.facts, event.settings):
        return state
    chosen = replace(state, model=event.facts, settings=event.settings, failure=None, considered=None)
    return _break(chosen, PlanBreak("another model was chosen", kind="error"))


def _joined(state: State, event: events.NodeJoined) -> State:
    node, head = event.facts.node_id, state.head
    is_head = event.is_head and (head is None or head.facts.node_id == node)
    before = state.nodes.get(node)
    trouble = before.trouble if before is not None else Trouble()
    limits = tuple(max(0, device.limit_bytes) for device in event.facts.devices)
    slept_s = event.slept_s or (before.slept_s if before is not None else 0.0)
    record = NodeRecord(event.facts, is_head, event.at, event.at, limits, trouble=trouble, may_hold=not is_head)
    record = replace(record, quarantine=before.quarantine if before is not None else None, slept_s=slept_s)
    if in_plan(state, node):
        state = _break(state, PlanBreak(f"'{event.facts.name}' started again", node))
    last_join_at = max(state.last_join_at, event.at)
    return replace(state, nodes={**state.nodes, node: record}, last_join_at=last_join_at)


def _heard(state: State, event: events.NodeHeard) -> State:
    record = state.nodes.get(event.node)
    if record is None or not record.alive:
        return state
    round_trip_s = record.round_trip_s if event.round_trip_s is None else event.round_trip_s
    last_heard = max(record.last_heard, event.at)
    heard = replace(record, load=event.load, round_trip_s=round_trip_s, last_heard=last_heard)
    heard = replace(heard, best_round_trip_s=_best(record.best_round_trip_s, event.round_trip_s))
    return _with(state, shrunk(heard, event.load, event.at))


def _best(best_s: float, round_trip_s: float | None) -> float:
    """What is longer than the network takes waited somewhere; a network that has become slower is believed slowly."""
    if round_trip_s is None:
        return best_s
    return min(round_trip_s, best_s * _BELIEVED) if best_s else round_trip_s


def _lost(state: State, event: events.NodeLost) -> State:
    record = state.nodes.get(event.node)
    if record is None or record.is_head or not record.alive:
        return state
    failed = event.failed or (record.stage is not None and record.stage.status == "loading")
    trouble = record.trouble.after(event.at, event.reason) if failed else record.trouble
    lost = replace(record, status="lost", stage=None, note=event.reason, trouble=trouble, may_hold=False)
    lost = replace(lost, asleep=event.silent and record.slept_s > 0)
    state = _with(state, replace(lost, last_heard=max(record.last_heard, event.at)))
    if not in_plan(state, event.node):
        return state
    kind = "failed" if event.failed else "lost"
    return _break(state, PlanBreak(f"'{record.facts.name}' was lost: {event.reason}", event.node, kind))


def _rested(state: State, node: NodeId) -> State:
    """What failed before still counts: if it fails once more, it rests again."""
    record = state.nodes.get(node)
    if record is None or not record.resting:
        return state
    return _with(state, replace(record, trouble=replace(record.trouble, resting_until=None)))


def _quarantined(state: State, event: events.NodeQuarantined) -> State:
    record = state.nodes.get(event.node)
    if record is None or record.is_head:
        return state
    quarantine = Quarantine(event.reason, event.at + QUARANTINE_S)
    state = _with(state, replace(record, quarantine=quarantine))
    if not in_plan(state, event.node):
        return state
    return _break(state, PlanBreak(f"'{record.facts.name}' is quarantined: {event.reason}", event.node))


def _quarantine_ended(state: State, node: NodeId) -> State:
    record = state.nodes.get(node)
    return state if record is None else _with(state, replace(record, quarantine=None))


def _draining(state: State, node: NodeId) -> State:
    record = state.nodes.get(node)
    if record is None or record.is_head or not record.alive:
        return state
    return _with(state, replace(record, draining=True))


# --- plans ----------------------------------------------------------------------------------------------------------


def _tried(state: State, at: float) -> State:
    speeds = {device.place: device.layer_s for device in present(state.nodes) if device.layer_s}
    return replace(state, planned_at=max(state.planned_at, at), tried_speeds=speeds)


def _planned(state: State, event: events.Planned) -> State:
    plan = event.plan
    if plan.epoch <= state.epoch or state.model is None or plan.model != state.model.ref:
        return state
    state, old = _tried(state, event.at), state.active_plan
    if old is not None and state.broken is None and same_deployment(old, plan):
        kept = with_reasons(old, plan.reasons)
        return replace(state, active_plan=kept, epoch=plan.epoch, considered=considering(state))
    if old is not None and state.broken is None and _is_optional(state, old) and not _is_worth_moving(state, old, plan):
        return _declined(state, old, plan)
    state = replace(state, active_plan=plan, epoch=plan.epoch, considered=considering(state), broken=None, failure=None)
    gone = next((node for node, _ in held_bytes(plan) if node not in candidates(state)), None)
    return state if gone is None else _break(state, PlanBreak("a node was lost while planning", gone))


def _is_optional(state: State, plan: Plan) -> bool:
    """Whether the plan could go on as it is: it serves, and none of its nodes is to hand layers over."""
    serves = state.serving_epoch == plan.epoch and not overfull(state)
    return serves and not any(state.nodes[node].draining for node, _ in held_bytes(plan))


def _is_worth_moving(state: State, old: Plan, plan: Plan) -> bool:
    traffic = Traffic(state.running, state.waiting, state.running_tokens)
    devices = present(state.nodes) if prefers_speed(state) else ()
    return worth_moving(old, plan, devices, traffic, load_bytes_per_s(state.nodes))


def _declined(state: State, old: Plan, plan: Plan) -> State:
    """Tried again once nothing runs; then it is settled until the nodes or their speeds have changed."""
    is_busy = state.running + state.waiting > 0
    if is_busy:
        return replace(state, epoch=plan.epoch, declined=(considering(state), state.waiting > 0))
    kept = with_reasons(old, declined_reasons(old, plan, present(state.nodes)))
    return replace(state, epoch=plan.epoch, active_plan=kept, considered=considering(state))


def _plan_failed(state: State, failure: Failure) -> State:
    """Uses up an epoch. A plan that is still good stays: it was only not possible to do better. Whoever was to hand
    layers over, and still has them, cannot be spared: then there may be a plan with it."""
    needed = {
        node: replace(record, draining=False)
        for node, record in state.nodes.items()
        if record.draining and (record.stage is not None or in_plan(state, node))
    }
    state = replace(state, nodes={**state.nodes, **needed})
    if state.active_plan is not None and state.broken is None:
        return replace(state, epoch=state.epoch + 1, considered=considering(state))
    if needed:
        return replace(state, epoch=state.epoch + 1, considered=None, active_plan=None, broken=None)
    if state.failure is not None:
        failure = replace(failure, since=state.failure.since)
    epoch, considered = state.epoch + 1, considering(state)
    return replace(state, epoch=epoch, considered=considered, active_plan=None, broken=None, failure=failure)


def _break(state: State, cause: PlanBreak) -> State:
    """The active plan cannot go on; the first cause is the one that is told."""
    if state.active_plan is None:
        return state
    waiting = state.interruption
    if waiting is not None and waiting.node is None:
        waiting = Interruption(waiting.since, cause.reason, cause.node)
    return replace(state, broken=state.broken or cause, considered=None, interruption=waiting)


def feeds(state: State, sender: NodeId, node: NodeId) -> bool:
    """Whether the active plan has `sender` hand activations to `node`."""
    stages = state.active_plan.stages if state.active_plan is not None else ()
    return any((before.node, after.node) == (sender, node) for before, after in pairwise(stages))


def overfull(state: State) -> bool:
    """Whether a device holds more of the active plan than its node can hold there now."""
    held = held_bytes(state.active_plan) if state.active_plan is not None else {}
    limits = {(node, at): limit for node, record in state.nodes.items() for at, limit in enumerate(record.limits)}
    return any(size_bytes > limits.get(place, 0) * (1 + SHARE) for place, size_bytes in held.items())


def in_plan(state: State, node: NodeId) -> bool:
    """Whether the active plan needs the node."""
    plan = state.active_plan
    return plan is not None and (node == plan.ends or any(stage.node == node for stage in plan.stages))


# --- stages ---------------------------------------------------------------------------------------------------------


def _assigned(state: State, event: events.Assigned) -> State:
    record = state.nodes.get(event.node)
    if record is None or not record.alive or event.epoch > state.epoch:
        return state
    if record.stage is not None and record.stage.epoch >= event.epoch:
        return state
    is_new = record.stage is None and not record.may_hold
    load_bytes = weights_bytes(state.active_plan, event.node) if is_new else 0
    stage = StageRecord(event.epoch, moved_at=event.at, assigned_at=event.at, load_bytes=load_bytes)
    return _with(state, replace(record, stage=stage, may_hold=False))


def _stage_progressed(
    state: State, event: events.StageFetching | events.StageLoading | events.StageBecameReady
) -> State:
    record = state.nodes.get(event.node)
    if record is None or record.stage is None or record.stage.epoch != event.epoch or record.stage.status != "loading":
        return state
    if isinstance(event, events.StageFetching):
        fetched_bytes = min(event.fetched_bytes, event.total_bytes)
        moved_at = event.at if fetched_bytes > record.stage.fetched_bytes else record.stage.moved_at
        fetched = {"fetched_bytes": fetched_bytes, "fetch_bytes": event.total_bytes}
        stage = replace(record.stage, moved_at=moved_at, **fetched)
    elif isinstance(event, events.StageLoading):
        fraction = min(1.0, max(0, event.loaded_bytes) / max(1, event.total_bytes))
        moved_at = event.at if fraction > record.stage.loaded_fraction else record.stage.moved_at
        stage = replace(record.stage, loaded_fraction=fraction, moved_at=moved_at)
    else:
        held = record.stage
        took_s = event.at - held.assigned_at
        if held.load_bytes and took_s > 0:
            record = replace(record, load_bytes_per_s=held.load_bytes / took_s)
        stage = replace(held, status="ready", loaded_fraction=1.0, direct=event.direct)
    return _with(state, replace(record, stage=stage))


def _refused(state: State, event: events.StageRefused) -> State:
    """The limit of the node's device falls strictly, so that planning again comes to an end."""
    record, plan = state.nodes.get(event.node), state.active_plan
    if record is None or not record.alive or plan is None or plan.epoch != event.epoch:
        return state
    position = event.position
    planned_bytes = held_bytes(plan).get((event.node, position))
    if planned_bytes is None:
        return state
    limit_bytes = _lowered(record.limits[position], planned_bytes, event.needed_bytes, event.present_bytes)
    limits = (*record.limits[:position], limit_bytes, *record.limits[position + 1 :])
    stage = None if record.stage is None else replace(record.stage, status="refused")
    state = _with(state, replace(record, limits=limits, usual_limits=(), stage=stage, note=event.reason))
    return _break(state, PlanBreak(f"'{record.facts.name}' refused its layers: {event.reason}", event.node))


def _ahead(state: State, event: events.WeightsAhead) -> State:
    record = state.nodes.get(event.node)
    if record is None or not record.alive:
        return state
    there_bytes = min(event.there_bytes, event.total_bytes)
    return _with(state, replace(record, ahead_bytes=(there_bytes, event.total_bytes)))


def _lowered(limit_bytes: int, planned_bytes: int, needed_bytes: int, present_bytes: int) -> int:
    """What was present becomes the limit.

    Where that is no lower, the node counts more than the planner does: the limit falls by the difference. A device
    that refuses what by the node's figures it could hold has another reason, and is not planned with again.
    """
    if present_bytes < limit_bytes:
        return max(0, present_bytes)
    corrected_bytes = present_bytes - (needed_bytes - planned_bytes)
    return corrected_bytes if 0 <= corrected_bytes < limit_bytes else 0


def _released(state: State, node: NodeId, epoch: int) -> State:
    record = state.nodes.get(node)
    if record is None or (record.stage is None and not record.may_hold):
        return state
    if record.stage is not None and record.stage.epoch > epoch:
        return state
    return _with(state, replace(record, stage=None, may_hold=False))


# --- serving --------------------------------------------------------------------------------------------------------


def _serving_started(state: State, epoch: int) -> State:
    """Recorded even when the plan has changed meanwhile: what serves has to be stopped."""
    if state.serving_epoch is not None or not 0 < epoch <= state.epoch:
        return state
    return replace(state, serving_epoch=epoch, interruption=None)


def _serving_broke(state: State, event: events.ServingBroke) -> State:
    if state.active_plan is None or event.epoch != state.active_plan.epoch:
        return state
    return _break(state, PlanBreak(event.reason, kind="failed" if event.in_step else "error"))


def _serving_stopped(state: State, event: events.ServingStopped) -> State:
    """A stopped epoch is spent, since its steps are numbered without gaps: going on takes a new plan."""
    if state.serving_epoch != event.epoch:
        return state
    interruption = Interruption(event.at, event.reason, event.node) if event.kept else None
    state = replace(state, serving_epoch=None, interruption=interruption)
    if state.active_plan is None or state.active_plan.epoch != event.epoch:
        return state
    return _break(state, PlanBreak(event.reason, kind="error"))


def _with(state: State, record: NodeRecord) -> State:
    return replace(state, nodes={**state.nodes, record.facts.node_id: record})
