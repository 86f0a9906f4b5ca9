"""What to do about a state: `next_actions`, pure and idempotent.

The caller performs the actions in order, feeds back the events that they are (Planned or PlanFailed, Assigned,
ServingStarted, ServingStopped, RequestsEnded, Released) and asks again, until nothing is left to do. Never sockets,
clocks, torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from transport.messages import Plan
from transport.types import NodeId
from vramancer_cli.cluster.capacity import capacities, present
from vramancer_cli.cluster.events import NodeDraining
from vramancer_cli.cluster.records import BreakKind, Candidate
from vramancer_cli.cluster.state import State, apply, candidates, considering, in_plan, overfull, prefers_speed
from vramancer_cli.planning.facts import DeviceCapacity
from vramancer_cli.planning.worth import has_drifted

RETURN_S: Final = 5.0
"""When what is left cannot hold the model, requests wait so long for a machine to be back: a link that only broke, or a
program that was started again. Then they end, with the reason."""
RECOVERY_S: Final = 300.0
"""The longest that requests wait for another plan to be loaded."""
SETTLE_S = 1.0
"""Machines switched on together join within this time of each other, and cause one plan."""
BUSY_SETTLE_S: Final = 10.0
"""The same while requests run and wait: each plan costs them a pause."""

RECONSIDER_S: Final = 30.0
"""Between two plans that are only made because nodes have become faster or slower."""


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
    """`reason` is a sentence for those who wait or whose answers end; `node` the one at fault, if one is.

    `kind`: as PlanBreak's; "moved" where the plan still works, and another one takes its place.
    """

    epoch: int
    reason: str
    node: NodeId | None
    kind: BreakKind | Literal["moved"] = "lost"


@dataclass(frozen=True, slots=True)
class EndRequests:
    """Tell those who wait for the next plan that there is none to be had soon; `node` as in StopServing."""

    reason: str
    node: NodeId | None


@dataclass(frozen=True, slots=True)
class Release:
    """Tell `node` to unload `epoch` and everything before."""

    node: NodeId
    epoch: int


Action = MakePlan | Assign | StartServing | StopServing | EndRequests | Release


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """`wake_at`: when to ask again although nothing happened; None: only after the next event."""

    actions: tuple[Action, ...] = ()
    wake_at: float | None = None


def next_actions(state: State, now: float) -> Reconciliation:
    """First stop what cannot go on, then plan, then unload what the plan does not need, load what it does, serve."""
    stop = _stop(state)
    if stop is not None:
        return Reconciliation((stop,))
    due_at = planning_due_at(state)
    if due_at is not None and now >= due_at:
        return Reconciliation((_make_plan(state),))
    moves = (*_releases(state), *_assigns(state))
    over_at = _interruption_over_at(state)
    if over_at is not None and now >= over_at and not (moves or _start(state)):
        return Reconciliation((_end_requests(state),))
    wake_at = min((at for at in (due_at, over_at) if at is not None), default=None)
    return Reconciliation(moves or _start(state), wake_at)


def planning_due_at(state: State) -> float | None:
    """When planning is due, after the last join has settled; None while there is nothing to plan.

    Without a sound plan, planning is due once the nodes or their limits differ from those last tried. With one, a
    newcomer is worth a try, and so are speeds that have changed (`planning.worth` says whether the plan is then worth
    the move). A node that is to hand its layers over always is. A lost node that held nothing changes nothing.
    """
    if state.model is None or state.head is None:
        return None
    now_there = considering(state)
    if state.active_plan is None or state.broken is not None:
        return state.last_join_at + SETTLE_S if now_there != state.considered else None
    if any(record.draining and in_plan(state, node) for node, record in state.nodes.items()):
        return 0.0
    if now_there != state.considered and overfull(state):
        return 0.0
    due = (_newcomers_due_at(state, now_there), _drift_due_at(state))
    return min((at for at in due if at is not None), default=None)


def _newcomers_due_at(state: State, now_there: frozenset[Candidate]) -> float | None:
    if state.considered is not None and now_there <= state.considered:
        return None
    if state.running + state.waiting == 0:
        return state.last_join_at + SETTLE_S
    was_tried = state.declined in ((now_there, True), (now_there, state.waiting > 0))
    timed = prefers_speed(state) and all(device.speed is not None for device in present(state.nodes))
    may_gain = timed or state.waiting > 0
    return state.last_join_at + BUSY_SETTLE_S if may_gain and not was_tried else None


def _drift_due_at(state: State) -> float | None:
    """Measured speeds are compared with those of the last planning, and not too often."""
    if (
        state.serving_epoch is None
        or not prefers_speed(state)
        or not has_drifted(state.tried_speeds, present(state.nodes))
    ):
        return None
    return state.planned_at + RECONSIDER_S


def _stop(state: State) -> StopServing | None:
    epoch, plan = state.serving_epoch, state.active_plan
    if epoch is None:
        return None
    if state.broken is not None:
        return StopServing(epoch, state.broken.reason, state.broken.node, state.broken.kind)
    if plan is None or plan.epoch != epoch:
        return StopServing(epoch, "the model is being moved to use other nodes", None, "moved")
    return None


def _interruption_over_at(state: State) -> float | None:
    """When those who wait for the next plan are to be told that it does not come."""
    waiting = state.interruption
    if waiting is None:
        return None
    longest = waiting.since + RECOVERY_S
    return longest if state.failure is None else min(longest, state.failure.since + RETURN_S)


def _end_requests(state: State) -> EndRequests:
    waiting = state.interruption
    assert waiting is not None
    why = f"no other plan was ready within {RECOVERY_S / 60:.0f} minutes."
    if state.failure is not None:
        why = f"what is left cannot hold the model. {state.failure.reason}"
    return EndRequests(f"{waiting.reason.rstrip('.')}; {why}", waiting.node)


def _make_plan(state: State) -> MakePlan:
    return MakePlan(state.epoch + 1, capacities(candidates(state).items()))


def plan_without(state: State, node: NodeId) -> MakePlan:
    """What would be planned with, had `node` to hand its layers over."""
    return _make_plan(apply(state, NodeDraining(node)))


def _releases(state: State) -> Iterator[Release]:
    """Whatever is held, or may be, by nodes that hold no layers of the active plan.

    While there is none, all stays where it is: the next one may want it; so do the leftovers of a node with which no
    plan was made yet. A node that hands its layers over is let go once the others serve them.
    """
    plan = state.active_plan
    if plan is None or state.broken is not None:
        return
    planned = {stage.node for stage in plan.stages}
    coming = considering(state) - (state.considered or frozenset())
    for node, record in sorted(state.nodes.items()):
        held = record.stage is not None or (record.may_hold and (node, record.limits) not in coming)
        if held and node not in planned and (state.serving_epoch == plan.epoch or not record.draining):
            yield Release(node, plan.epoch)


def _assigns(state: State) -> Iterator[Assign]:
    """The active plan's stages. A node that holds an older one makes the new one of it."""
    plan = state.active_plan
    if plan is None or state.broken is not None:
        return
    for node, first in plan.firsts().items():
        held = state.nodes[node].stage
        if held is None or held.epoch != plan.epoch:
            yield Assign(node, plan, first)


def _start(state: State) -> tuple[StartServing, ...]:
    plan = state.active_plan
    if plan is None or state.broken is not None or state.serving_epoch is not None:
        return ()
    if all(state.stage_ready(stage.node) for stage in plan.stages):
        return (StartServing(plan),)
    return ()
