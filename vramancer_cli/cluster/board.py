"""The cluster as a person sees it, made from its state: node states, sentences, and why it does not serve yet.

Pure: `now` is an argument; never sockets, clocks, torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from transport.messages import DeviceLoad, StagePlan
from transport.types import NodeId, OfferedDevice
from vramancer_cli.cluster.reconcile import planning_due_at
from vramancer_cli.cluster.records import NodeRecord
from vramancer_cli.cluster.state import State, candidates, in_plan, mismatch
from vramancer_cli.cluster.status import (
    ClusterStatus,
    DeviceStatus,
    LinkStatus,
    NodeState,
    NodeStatus,
    ServiceState,
)


def cluster_status(
    state: State,
    *,
    cluster: str,
    cluster_id: str,
    version: str,
    uptime_s: float,
    running: int,
    waiting: int,
    tokens_per_s: float,
    api_url: str,
    now: float,
    tokens_per_trip: float | None = None,
    draft_acceptance: float | None = None,
    prefix_tokens: tuple[int, int] = (0, 0),
) -> ClusterStatus:
    """Nodes in pipeline order, then the others by name, the lost ones last."""
    plan, model, settings = state.active_plan, state.model, state.settings
    service, reason = service_state(state)
    return ClusterStatus(
        cluster=cluster,
        cluster_id=cluster_id,
        version=version,
        state=service,
        reason=reason,
        model=model.ref.name if model is not None else "",
        layer_count=model.layer_count if model is not None else 0,
        dtype=plan.dtype if plan is not None else "",
        quantize=plan.quantize if plan is not None else "none",
        context_tokens=plan.context_tokens if plan is not None else (settings.context_tokens if settings else 0),
        epoch=plan.epoch if plan is not None else state.epoch,
        uptime_s=uptime_s,
        running=running,
        waiting=waiting,
        tokens_per_s=tokens_per_s,
        tokens_per_trip=tokens_per_trip,
        draft_acceptance=draft_acceptance,
        api_url=api_url,
        nodes=tuple(_node_status(state, node, now) for node in _board_order(state)),
        prefix_found_tokens=prefix_tokens[0],
        prefix_asked_tokens=prefix_tokens[1],
        links=tuple(_links(state)),
    )


def service_state(state: State) -> tuple[ServiceState, str]:
    """Whether the model answers, and why not, in one sentence.

    "waiting": for machines, memory or a decision; "failed": no plan, and more memory would not help.
    """
    plan = state.active_plan
    if plan is not None and state.broken is None:
        return ("ready", "") if state.serving_epoch == plan.epoch else ("loading", _loading_reason(state))
    if state.broken is not None:
        return "loading", f"Planning again: {state.broken.reason.rstrip('.')}."
    if state.failure is not None:
        service: ServiceState = "waiting" if state.failure.missing_bytes > 0 else "failed"
        return service, " ".join([state.failure.reason, *_refusals(state), *_resting(state)])
    if state.model is None:
        return "waiting", "No model has been chosen yet."
    return "waiting", "Waiting a moment for other machines before the layers are placed."


def _refusals(state: State) -> list[str]:
    """What nodes said who could hold more, as they saw it: without it, the missing memory would be half the truth."""
    refused = (record for record in state.nodes.values() if record.alive and record.note)
    return [f"'{record.facts.name}' refused its layers: {record.note}" for record in refused]


def _resting(state: State) -> list[str]:
    resting = (record for record in state.nodes.values() if record.alive and record.resting)
    return [f"'{record.facts.name}' is not used for a while: {_failures(record)}." for record in resting]


def _failures(record: NodeRecord) -> str:
    trouble = record.trouble
    return f"it failed {len(trouble.times)} times, the last time with: {trouble.reason.rstrip('.')}"


def _loading_reason(state: State) -> str:
    stages = state.active_plan.stages if state.active_plan is not None else ()
    nodes = state.active_plan.firsts() if state.active_plan is not None else {}
    ready = sum(map(state.stage_ready, nodes))
    total_bytes = sum(stage.weights_bytes for stage in stages)
    loaded_bytes = sum(_loaded_fraction(state, stage.node) * stage.weights_bytes for stage in stages)
    percent = int(100 * loaded_bytes / total_bytes) if total_bytes else 0
    loading = f"Loading the model: {ready} of {len(nodes)} nodes are ready, {percent} % of the weights are in place."
    return " ".join([loading, *(_fetching(state.nodes[node]) for node in nodes if _fetches(state, node))])


def _fetches(state: State, node: NodeId) -> bool:
    stage = state.nodes[node].stage
    return stage is not None and stage.status == "loading" and stage.fetched_bytes < stage.fetch_bytes


def _fetching(record: NodeRecord) -> str:
    assert record.stage is not None
    fetched, all_of_it = (size / (1 << 20) for size in (record.stage.fetched_bytes, record.stage.fetch_bytes))
    return f"'{record.facts.name}' fetches its weights from the master: {fetched:.0f} of {all_of_it:.0f} MiB."


def _links(state: State) -> Iterator[LinkStatus]:
    """Those of the plan, in pipeline order, as their sending ends last told of them."""
    names = {node: record.facts.name for node, record in state.nodes.items() if record.alive}
    for node in _board_order(state):
        for link in state.nodes[node].load.links:
            if node in names and link.node in names and in_plan(state, node):
                yield LinkStatus(names[node], names[link.node], link.bytes_per_s, link.activations)


# --- nodes ----------------------------------------------------------------------------------------------------------


def _board_order(state: State) -> list[NodeId]:
    position = state.active_plan.firsts() if state.active_plan is not None else {}

    def key(node: NodeId) -> tuple[bool, int, bool, str, NodeId]:
        record = state.nodes[node]
        place = position.get(node, len(position))
        return not record.alive, place, not record.is_head, record.facts.name, node

    return sorted(state.nodes, key=key)


def _node_status(state: State, node: NodeId, now: float) -> NodeStatus:
    record = state.nodes[node]
    facts, devices = record.facts, _device_statuses(state, node)
    held = [device.layers for device in devices if device.layers is not None]
    return NodeStatus(
        id=node,
        name=facts.name,
        role="head" if record.is_head else "worker",
        os=facts.os,
        device=" + ".join(device.device for device in devices),
        device_name=" + ".join(device.device_name for device in devices),
        memory_used_bytes=sum(device.memory_used_bytes for device in devices),
        memory_limit_bytes=facts.limit_bytes,
        state=_node_state(state, node),
        round_trip_s=None if record.is_head else record.round_trip_s,
        layers=(held[0][0], held[-1][1]) if held else None,
        layer_tokens=record.load.layer_tokens,
        loaded_fraction=_loaded_fraction(state, node),
        direct=record.direct,
        why=_why(state, node, now),
        address=str(facts.addresses[0]) if facts.addresses else "",
        fetched_bytes=record.stage.fetched_bytes if record.stage is not None else 0,
        fetch_bytes=record.stage.fetch_bytes if record.stage is not None else 0,
        devices=devices,
    )


def _device_statuses(state: State, node: NodeId) -> tuple[DeviceStatus, ...]:
    """In the node's own order. Before it was first heard, and when it is lost, it uses nothing."""
    record = state.nodes[node]
    loads = dict(enumerate(record.load.devices))
    stages = {stage.position: stage for stage in _stages_of(state, node)} if record.alive else {}
    return tuple(
        _device_status(offered, record.alive, loads.get(position, DeviceLoad(0, 0)), stages.get(position))
        for position, offered in enumerate(record.facts.devices)
    )


def _device_status(offered: OfferedDevice, alive: bool, load: DeviceLoad, stage: StagePlan | None) -> DeviceStatus:
    return DeviceStatus(
        device=str(offered.facts),
        device_name=offered.facts.name,
        memory_used_bytes=load.memory_used_bytes if alive else 0,
        memory_limit_bytes=offered.limit_bytes,
        layers=(stage.layers.start, stage.layers.end) if stage is not None else None,
        layer_tokens=load.layer_tokens,
    )


def _node_state(state: State, node: NodeId) -> NodeState:
    record, plan = state.nodes[node], state.active_plan
    if not record.alive:
        return "lost"
    if record.resting or mismatch(state, record) is not None or (record.draining and not in_plan(state, node)):
        return "spare"
    if plan is None or state.broken is not None or node not in plan.reasons:
        return "joined"
    if _stages_of(state, node):
        return "ready" if state.stage_ready(node) else "loading"
    if node == plan.ends:
        return "ready" if state.serving_epoch == plan.epoch else "loading"
    return "spare"


def _why(state: State, node: NodeId, now: float) -> str:
    record, plan = state.nodes[node], state.active_plan
    if not record.alive:
        return f"lost {max(0.0, now - record.last_heard):.0f} s ago: {record.note}"
    different = mismatch(state, record)
    if different is not None:
        return f"not used: {different}"
    if record.draining:
        return "hands its layers over" if in_plan(state, node) else "drained: holds nothing until it is started again"
    if record.trouble.resting_until is not None:
        left_min = math.ceil(max(0.0, record.trouble.resting_until - now) / 60)
        return f"not used for another {left_min} min: {_failures(record)}"
    if plan is not None and node in plan.reasons:
        refused = f"; it refused before: {record.note}" if record.note else ""
        return plan.reasons[node] + refused
    if record.note:
        return f"refused: {record.note}"
    return _why_joined(state, node)


def _why_joined(state: State, node: NodeId) -> str:
    if state.failure is not None and planning_due_at(state) is None:
        return "not used: the model does not fit yet"
    is_busy = state.running > 0 or state.waiting > 0
    if state.active_plan is not None and is_busy and node in candidates(state):
        return "used as soon as no request is running, or enough of them wait"
    return "waits for its layers"


def _stages_of(state: State, node: NodeId) -> list[StagePlan]:
    stages = state.active_plan.stages if state.active_plan is not None else ()
    return [stage for stage in stages if stage.node == node]


def _loaded_fraction(state: State, node: NodeId) -> float:
    record, plan = state.nodes[node], state.active_plan
    if plan is None or record.stage is None or record.stage.epoch != plan.epoch:
        return 0.0
    return record.stage.loaded_fraction
