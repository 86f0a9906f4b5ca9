"""What holds of every state of a cluster, whatever has happened."""

from __future__ import annotations

from vramancer_cli.cluster.state import State, candidates
from vramancer_cli.planning.plan import held_bytes


def validate(state: State) -> None:
    """Raises AssertionError where a state contradicts itself."""
    _validate_nodes(state)
    _validate_plan(state)
    assert state.running >= 0
    assert state.waiting >= 0
    assert state.serving_epoch is None or 0 < state.serving_epoch <= state.epoch


def _validate_nodes(state: State) -> None:
    assert sum(record.is_head for record in state.nodes.values()) <= 1, "two heads"
    for node, record in state.nodes.items():
        assert record.facts.node_id == node
        own = [max(0, device.limit_bytes) for device in record.facts.devices]
        assert all(0 <= limit <= most for limit, most in zip(record.limits, own, strict=True))
        assert record.last_heard >= record.joined_at
        assert record.alive or (record.stage is None and not record.is_head), "a lost node holds something"
        assert record.stage is None or 0 < record.stage.epoch <= state.epoch
        assert record.stage is None or 0.0 <= record.stage.loaded_fraction <= 1.0


def _validate_plan(state: State) -> None:
    plan = state.active_plan
    assert state.broken is None or plan is not None, "a break without a plan"
    if plan is None:
        return
    assert state.model is not None
    assert plan.epoch <= state.epoch
    assert state.failure is None, "a plan and a failure"
    if state.broken is None:
        assert plan.model == state.model.ref
        usable = {*candidates(state), *(node for node, record in state.nodes.items() if record.draining)}
        assert all(node in usable for node, _ in held_bytes(plan)), "a plan with a node that is gone"
        assert state.considered is not None
