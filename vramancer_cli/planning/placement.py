"""Who holds which layers: `place` turns model and nodes into a Plan, or says what is missing.

Pure and deterministic: the order in which the nodes are listed does not matter. Never torch, sockets, clocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transport.messages import Plan, StagePlan
from transport.types import LayerRange, NodeId
from vramancer_cli.errors import DoesNotFitError
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.planning import explain
from vramancer_cli.planning.facts import NodeCapacity, PlanSettings
from vramancer_cli.planning.memory import Costs, choose_dtype, context_tokens, price
from vramancer_cli.planning.partition import gaps, partition


def place(facts: ModelFacts, nodes: Sequence[NodeCapacity], head: NodeId, settings: PlanSettings, epoch: int) -> Plan:
    """The head pays for the ends first; the layers, each with its KV for one context, go where room is left.

    Every stage pays for its workspace. What is then left on the tightest stage becomes more KV blocks and, for
    a model with recurrent state, slots for more sequences. The head's
    stage comes first, then the others by limit, largest first, and node id. Raises DoesNotFitError with the exact
    `missing_bytes` that, added to the node it names, would make the model fit.
    """
    order = _pipeline_order(nodes, head)
    dtype = choose_dtype(settings.dtype, facts, order, settings.quantize)
    offer = _Offer(price(facts, settings, dtype), order)
    ranges = offer.cut()
    if ranges is None:
        raise _does_not_fit(facts, settings, offer)
    return _plan(facts, settings, dtype, epoch, offer, ranges)


@dataclass(frozen=True, slots=True)
class _Offer:
    """A price list and the nodes in pipeline order, the head first."""

    costs: Costs
    order: tuple[NodeCapacity, ...]

    @property
    def head(self) -> NodeCapacity:
        return self.order[0]

    @property
    def head_can_pay(self) -> bool:
        return self.head.limit_bytes >= self.costs.ends_bytes

    def room(self, node: NodeCapacity) -> int:
        """Bytes for layers on a node, below zero where workspace or ends alone are too much."""
        ends_bytes = self.costs.ends_bytes if node.node == self.head.node else 0
        return node.limit_bytes - ends_bytes - self.costs.workspace_bytes

    def rooms(self) -> tuple[int, ...]:
        return tuple(self.room(node) for node in self.order)

    def cut(self) -> tuple[LayerRange, ...] | None:
        return partition(self.costs.layer_bytes(), self.rooms()) if self.head_can_pay else None


def _pipeline_order(nodes: Sequence[NodeCapacity], head: NodeId) -> tuple[NodeCapacity, ...]:
    by_id = {node.node: node for node in nodes}
    if len(by_id) != len(nodes) or head not in by_id:
        raise ValueError("A plan needs the head among its nodes, and each node once.")
    return (by_id[head], *sorted((n for n in nodes if n.node != head), key=_rank))


def _rank(node: NodeCapacity) -> tuple[int, NodeId]:
    return -node.limit_bytes, node.node


# --- a plan ---------------------------------------------------------------------------------------------------------


def _plan(
    facts: ModelFacts,
    settings: PlanSettings,
    dtype: str,
    epoch: int,
    offer: _Offer,
    ranges: tuple[LayerRange, ...],
) -> Plan:
    state_slots = _state_slots(offer, ranges)
    block_count = _block_count(offer, ranges, state_slots)
    pairs = list(zip(offer.order, ranges, strict=True))
    stages = {
        node.node: _stage(offer.costs, node, layers, block_count, state_slots) for node, layers in pairs if len(layers)
    }
    return Plan(
        epoch=epoch,
        model=facts.ref,
        dtype=dtype,
        context_tokens=context_tokens(facts, settings),
        block_tokens=settings.block_tokens,
        block_count=block_count,
        max_step_tokens=settings.max_step_tokens,
        ends=offer.head.node,
        ends_bytes=offer.costs.ends_bytes,
        stages=tuple(stages.values()),
        quantize=settings.quantize,
        state_slots=state_slots,
        reasons={node.node: _reason(offer, node, stages.get(node.node)) for node in offer.order},
    )


def _state_slots(offer: _Offer, ranges: tuple[LayerRange, ...]) -> int:
    """As many states as the tightest stage can hold in half of what it has over, or in all that blocks cannot use."""
    costs = offer.costs
    count = costs.most_slots
    for room, layers in zip(offer.rooms(), ranges, strict=True):
        per_slot = costs.stage_state_bytes(layers, 1)
        if per_slot:
            spare = room - sum(costs.layer_bytes()[layers.start : layers.end])
            unused = spare - costs.stage_kv_bytes(layers, costs.most_blocks - costs.least_blocks)
            count = min(count, costs.least_slots + max(spare // 2, unused) // per_slot)
    return count


def _block_count(offer: _Offer, ranges: tuple[LayerRange, ...], state_slots: int) -> int:
    """As many blocks as the tightest stage can hold beside its states, at most `max_sequences` contexts."""
    costs = offer.costs
    count = costs.most_blocks
    for room, layers in zip(offer.rooms(), ranges, strict=True):
        per_block = costs.stage_kv_bytes(layers, 1)
        if per_block:
            taken = costs.stage_weights_bytes(layers) + costs.stage_state_bytes(layers, state_slots)
            count = min(count, (room - taken) // per_block)
    return count


def _stage(costs: Costs, node: NodeCapacity, layers: LayerRange, block_count: int, state_slots: int) -> StagePlan:
    return StagePlan(
        node=node.node,
        device=node.device,
        layers=layers,
        weights_bytes=costs.stage_weights_bytes(layers),
        kv_bytes=costs.stage_kv_bytes(layers, block_count) + costs.stage_state_bytes(layers, state_slots),
        workspace_bytes=costs.workspace_bytes,
    )


def _reason(offer: _Offer, node: NodeCapacity, stage: StagePlan | None) -> str:
    costs = offer.costs
    if stage is not None:
        return explain.stage_reason(stage, node, offer.head.node, costs.ends_bytes)
    ends_bytes = costs.ends_bytes if node.node == offer.head.node else None
    return explain.empty_reason(node, offer.room(node), min(costs.layer_bytes()), ends_bytes=ends_bytes)


# --- no plan --------------------------------------------------------------------------------------------------------


def _does_not_fit(facts: ModelFacts, settings: PlanSettings, offer: _Offer) -> DoesNotFitError:
    missing_bytes, node = min(_remedies(offer), key=lambda remedy: (remedy[0], remedy[1].node))
    if not offer.head_can_pay:
        sentence = explain.ends_misfit(facts.ref.name, offer.costs.ends_bytes, offer.head, missing_bytes)
        hint = "Raise --memory on the head, or start the cluster on a machine with more."
        return DoesNotFitError(sentence, missing_bytes=missing_bytes, hint=hint)
    costs = offer.costs
    needed_bytes = costs.ends_bytes + costs.workspace_bytes + sum(costs.layer_bytes())
    limits_bytes = sum(n.limit_bytes for n in offer.order)
    tokens = context_tokens(facts, settings)
    sentence = explain.misfit(facts.ref.name, needed_bytes, tokens, limits_bytes, missing_bytes, node.name)
    return DoesNotFitError(sentence, missing_bytes=missing_bytes)


def _remedies(offer: _Offer) -> Iterator[tuple[int, NodeCapacity]]:
    """For each node, the least bytes that would make the model fit if only that node had them more.

    Only more on the head helps while it cannot pay for the ends.
    """
    first = gaps(offer.costs.layer_bytes(), offer.rooms()[1:])[0]
    yield offer.costs.ends_bytes + _gap_bytes(offer.costs, first) - offer.head.limit_bytes, offer.head
    if offer.head_can_pay:
        for node in offer.order[1:]:
            for limit_bytes in _limits_that_help(offer, node):
                yield limit_bytes - node.limit_bytes, node


def _limits_that_help(offer: _Offer, node: NodeCapacity) -> Iterator[int]:
    """For each place in the pipeline that `node` can have, the least limit with which it has it and closes the gap.

    More memory moves a node forward, where the gap that it has to close may be another one.
    """
    others = tuple(n for n in offer.order if n.node != node.node)
    around = gaps(offer.costs.layer_bytes(), tuple(offer.room(n) for n in others))
    for position in range(1, len(others) + 1):
        limit_bytes = max(node.limit_bytes, _gap_bytes(offer.costs, around[position]))
        if position < len(others):
            behind = others[position]
            limit_bytes = max(limit_bytes, behind.limit_bytes + (node.node > behind.node))
        if position == 1 or _rank(others[position - 1]) < (-limit_bytes, node.node):
            yield limit_bytes


def _gap_bytes(costs: Costs, layers: LayerRange) -> int:
    """What a node needs to hold these layers, workspace included; nothing for none."""
    if not len(layers):
        return 0
    return costs.workspace_bytes + sum(costs.layer_bytes()[layers.start : layers.end])
