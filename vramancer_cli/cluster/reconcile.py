"""What to do about a state: `next_actions`, pure and idempotent.

The caller performs the actions in order, feeds back the events that they are (Planned or PlanFailed, Assigned,
ServingStarted, ServingStopped, Released) and asks again, until nothing is left to do. Never sockets, clocks, torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from transport.messages import Plan
from transport.types import NodeId
from vramancer_cli.cluster.records import NodeRecord
from vramancer_cli.cluster.state import State, candidates, considering
from vramancer_cli.planning.facts import DeviceCapacity

SETTLE_S = 1.0
"""Machines switched on together join within this time of each other, and cause one plan."""


@dataclass(frozen=True, slots=True)
class MakePlan:
    """Plan with exactly these devices."""

    epoch: int
    devices: tuple[DeviceCapacity, ...]


@dataclass(frozen=True, slots=True)
class Assign:
    """Tell `node` to load its stages of `plan`, of which `stage` is the first."""

    node: NodeId
    plan: Plan
    stage: int


@dataclass(frozen=True, slots=True)
class StartServing:
    """Every stage is ready."""

    plan: Plan


@dataclass(frozen=True, slots=True)
class StopServing:
    """`reason` is a sentence for those whose answers end; `node` the one at fault, if one is."""

    epoch: int
    reason: str
    node: NodeId | None


@dataclass(frozen=True, slots=True)
class Release:
    """Tell `node` to unload `epoch` and everything before."""

    node: NodeId
    epoch: int


Action = MakePlan | Assign | StartServing | StopServing | Release


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """`wake_at`: when to ask again although nothing happened; None: only after the next event."""

    actions: tuple[Action, ...] = ()
    wake_at: float | None = None


def next_actions(state: State, now: float) -> Reconciliation:
    """First stop what cannot go on, then plan, then unload what is of no plan, load what is, and serve."""
    stop = _stop(state)
    if stop is not None:
        return Reconciliation((stop,))
    due_at = planning_due_at(state)
    if due_at is not None and now >= due_at:
        return Reconciliation((_make_plan(state),))
    moves = (*_releases(state), *_assigns(state))
    return Reconciliation(moves or _start(state), due_at)


def planning_due_at(state: State) -> float | None:
    """When planning is due, after the last join has settled; None while there is nothing to plan.

    Without a sound plan, planning is due once the nodes or their limits differ from those last tried. With one, a
    newcomer is worth it, but only while nothing runs or waits. A lost node that held nothing changes nothing.
    """
    if state.model is None or state.head is None:
        return None
    present = considering(state)
    if state.active_plan is None or state.broken is not None:
        wanted = present != state.considered
    else:
        is_idle = state.running == 0 and state.waiting == 0
        wanted = is_idle and (state.considered is None or not present <= state.considered)
    return state.last_join_at + SETTLE_S if wanted else None


def _stop(state: State) -> StopServing | None:
    epoch, plan = state.serving_epoch, state.active_plan
    if epoch is None:
        return None
    if state.broken is not None:
        return StopServing(epoch, state.broken.reason, state.broken.node)
    if plan is None or plan.epoch != epoch:
        return StopServing(epoch, "the model is being moved to use another node", None)
    return None


def _make_plan(state: State) -> MakePlan:
    usable = sorted(candidates(state).items())
    return MakePlan(state.epoch + 1, tuple(device for _, record in usable for device in _capacities(record)))


def _capacities(record: NodeRecord) -> Iterator[DeviceCapacity]:
    facts = record.facts
    for position, (offered, limit_bytes) in enumerate(zip(facts.devices, record.limits, strict=True)):
        name = facts.name if len(facts.devices) == 1 else f"{facts.name} {offered.facts}"
        yield DeviceCapacity(facts.node_id, name, offered.facts, limit_bytes, position)


def _releases(state: State) -> Iterator[Release]:
    """Whatever is held of another epoch than the active plan's."""
    kept = state.active_plan.epoch if state.active_plan is not None else None
    for node, record in sorted(state.nodes.items()):
        if record.stage is not None and record.stage.epoch != kept:
            yield Release(node, record.stage.epoch)


def _assigns(state: State) -> Iterator[Assign]:
    """The active plan's stages on nodes that hold nothing: an old stage is released first."""
    plan = state.active_plan
    if plan is None or state.broken is not None:
        return
    for node, first in plan.firsts().items():
        if state.nodes[node].stage is None:
            yield Assign(node, plan, first)


def _start(state: State) -> tuple[StartServing, ...]:
    plan = state.active_plan
    if plan is None or state.broken is not None or state.serving_epoch is not None:
        return ()
    if all(state.stage_ready(stage.node) for stage in plan.stages):
        return (StartServing(plan),)
    return ()
