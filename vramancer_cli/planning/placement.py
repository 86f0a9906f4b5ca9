"""Who holds which layers: `place` turns model and devices into a Plan, or says what is missing.

Pure and deterministic: the order in which the devices are listed does not matter. Never torch, sockets, clocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from transport.messages import Plan, StagePlan, WindowGroup
from transport.types import LayerRange, NodeId
from vramancer_cli.errors import DoesNotFitError
from vramancer_cli.models.activation_format import resolved
from vramancer_cli.models.facts import ModelFacts
from vramancer_cli.planning import explain
from vramancer_cli.planning.facts import DeviceCapacity, Place, PlanSettings
from vramancer_cli.planning.memory import Costs, choose_dtype, context_tokens, price
from vramancer_cli.planning.partition import gaps, narrowed, partition


def place(
    facts: ModelFacts, devices: Sequence[DeviceCapacity], head: NodeId, settings: PlanSettings, epoch: int
) -> Plan:
    """The head's first device pays for the ends first; the layers, each with its KV for one context, go where room
    is left.

    Every stage pays for its workspace. What is then left on the tightest stage becomes more blocks of each cache group
    and, for a model with recurrent state, slots for more sequences. The head's stages come first, then the other nodes
    by the sum of their limits, largest first, and node id; a node's devices stay together, in its own order, so that
    hops between machines are few. Raises DoesNotFitError with the exact `missing_bytes` that, added to the device it
    names, would make the model fit.
    """
    order = _pipeline_order(devices, head)
    dtype = choose_dtype(settings.dtype, facts, order, settings.quantize)
    offer = _Offer(price(facts, settings, dtype), order)
    ranges = offer.cut()
    if ranges is None:
        raise _does_not_fit(facts, settings, offer)
    return _plan(facts, settings, dtype, epoch, offer, ranges)


@dataclass(frozen=True, slots=True)
class _Offer:
    """A price list and the devices in pipeline order, the head's first."""

    costs: Costs
    order: tuple[DeviceCapacity, ...]

    @property
    def head(self) -> DeviceCapacity:
        """The device that holds the ends."""
        return self.order[0]

    @property
    def head_can_pay(self) -> bool:
        return self.head.limit_bytes >= self.costs.ends_bytes

    def room(self, device: DeviceCapacity) -> int:
        """Bytes for layers on a device, below zero where workspace or ends alone are too much."""
        ends_bytes = self.costs.ends_bytes if device == self.head else 0
        return device.limit_bytes - ends_bytes - self.costs.workspace_bytes

    def rooms(self) -> tuple[int, ...]:
        return tuple(self.room(device) for device in self.order)

    def nodes(self) -> list[tuple[DeviceCapacity, ...]]:
        """The devices of each node, in pipeline order."""
        return [tuple(devices) for _, devices in groupby(self.order, lambda device: device.node)]

    def cut(self) -> tuple[LayerRange, ...] | None:
        return partition(self.costs.layer_bytes(), self.rooms()) if self.head_can_pay else None


def _pipeline_order(devices: Sequence[DeviceCapacity], head: NodeId) -> tuple[DeviceCapacity, ...]:
    by_place = {device.place: device for device in devices}
    if len(by_place) != len(devices) or (head, 0) not in by_place:
        raise ValueError("A plan needs the head's first device, and each device once.")
    nodes: dict[NodeId, list[DeviceCapacity]] = {}
    for place in sorted(by_place):
        nodes.setdefault(place[0], []).append(by_place[place])
    own = nodes.pop(head)
    return (*own, *(device for node in sorted(nodes.values(), key=_rank) for device in node))


def _rank(node: Sequence[DeviceCapacity]) -> tuple[int, NodeId]:
    return -sum(device.limit_bytes for device in node), node[0].node


# --- a plan ---------------------------------------------------------------------------------------------------------


def _plan(
    facts: ModelFacts,
    settings: PlanSettings,
    dtype: str,
    epoch: int,
    offer: _Offer,
    ranges: tuple[LayerRange, ...],
) -> Plan:
    counts = _counts(offer, ranges)
    block_count, *window_counts, state_slots = counts
    pairs = list(zip(offer.order, ranges, strict=True))
    stages = {device.place: _stage(offer.costs, device, layers, counts) for device, layers in pairs if len(layers)}
    groups = zip(offer.costs.windows, window_counts, strict=True)
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
        kv_cache=settings.kv_cache,
        activations=resolved(settings.activations, dtype),
        state_slots=state_slots,
        windows=tuple(WindowGroup(group.window_tokens, count) for group, count in groups),
        reasons={node[0].node: _node_reason(offer, node, stages) for node in offer.nodes()},
    )


def _counts(offer: _Offer, ranges: tuple[LayerRange, ...]) -> list[int]:
    """How many pieces of each cache group the tightest stages can hold.

    Windows' blocks and states come first, each with half of what a stage has over, or with all that the blocks of group
    0 could not use; then these; then the others once more, with what no block of group 0 fits into.
    """
    groups = offer.costs.groups
    counts = [group.least for group in groups]
    others = range(1, len(groups))
    for number, share in (*((other, 2) for other in others), (0, 1), *((other, 1) for other in others)):
        counts[number] += _more(offer, ranges, counts, number, share)
    return counts


def _more(offer: _Offer, ranges: tuple[LayerRange, ...], counts: Sequence[int], number: int, share: int) -> int:
    """How many pieces of group `number` every stage can hold beside `counts`, in one of `share` parts of its room."""
    costs = offer.costs
    blocks, group = costs.blocks, costs.groups[number]
    more = group.most - counts[number]
    for room, layers in zip(offer.rooms(), ranges, strict=True):
        piece_bytes = group.stage_bytes(layers, 1)
        if piece_bytes:
            spare = room - costs.stage_weights_bytes(layers) - costs.stage_cache_bytes(layers, counts)
            beyond_blocks = spare - blocks.stage_bytes(layers, blocks.most - blocks.least) if number else 0
            more = min(more, max(spare // share, beyond_blocks) // piece_bytes)
    return more


def _stage(costs: Costs, device: DeviceCapacity, layers: LayerRange, counts: Sequence[int]) -> StagePlan:
    return StagePlan(
        node=device.node,
        device=device.device,
        position=device.position,
        layers=layers,
        weights_bytes=costs.stage_weights_bytes(layers),
        kv_bytes=costs.stage_cache_bytes(layers, counts),
        workspace_bytes=costs.workspace_bytes,
    )


def _node_reason(offer: _Offer, node: Sequence[DeviceCapacity], stages: Mapping[Place, StagePlan]) -> str:
    return explain.node_reason([(device, _reason(offer, device, stages.get(device.place))) for device in node])


def _reason(offer: _Offer, device: DeviceCapacity, stage: StagePlan | None) -> str:
    costs = offer.costs
    ends_bytes = costs.ends_bytes if device == offer.head else None
    if stage is not None:
        return explain.stage_reason(stage, device, ends_bytes=ends_bytes)
    return explain.empty_reason(device, offer.room(device), min(costs.layer_bytes()), ends_bytes=ends_bytes)


# --- no plan --------------------------------------------------------------------------------------------------------


def _does_not_fit(facts: ModelFacts, settings: PlanSettings, offer: _Offer) -> DoesNotFitError:
    missing_bytes, device = min(_remedies(offer), key=lambda remedy: (remedy[0], remedy[1].place))
    if not offer.head_can_pay:
        sentence = explain.ends_misfit(facts.ref.name, offer.costs.ends_bytes, offer.head, missing_bytes)
        hint = "Raise --memory on the head, or start the cluster on a machine with more."
        return DoesNotFitError(sentence, missing_bytes=missing_bytes, hint=hint)
    costs = offer.costs
    needed_bytes = costs.ends_bytes + costs.workspace_bytes + sum(costs.layer_bytes())
    limits_bytes = sum(d.limit_bytes for d in offer.order)
    tokens = context_tokens(facts, settings)
    sentence = explain.misfit(facts.ref.name, needed_bytes, tokens, limits_bytes, missing_bytes, device.name)
    return DoesNotFitError(sentence, missing_bytes=missing_bytes)


def _remedies(offer: _Offer) -> Iterator[tuple[int, DeviceCapacity]]:
    """For each device, the least bytes that would make the model fit if only that device had them more.

    Only more on the device of the ends helps while it cannot pay for them.
    """
    own, *others = offer.nodes()
    rooms = [offer.room(device) for device in offer.order[len(own) :]]
    yield from _head_remedies(offer, own, gaps(offer.costs.layer_bytes(), rooms)[0])
    if offer.head_can_pay:
        for node in others:
            yield from _node_remedies(offer, node, [other for other in others if other != node])


def _head_remedies(
    offer: _Offer, own: Sequence[DeviceCapacity], gap: LayerRange
) -> Iterator[tuple[int, DeviceCapacity]]:
    """The head's place in the pipeline is always the first; `gap`: what the other nodes leave there."""
    for device in own if offer.head_can_pay else own[:1]:
        ends_bytes = offer.costs.ends_bytes if device == offer.head else 0
        yield ends_bytes + _lacking(offer, own, device, gap) - device.limit_bytes, device


def _node_remedies(
    offer: _Offer, node: Sequence[DeviceCapacity], others: Sequence[Sequence[DeviceCapacity]]
) -> Iterator[tuple[int, DeviceCapacity]]:
    """For each of its devices, and each place in the pipeline that the node can have, the least that lets it have that
    place and close the gap there.

    More memory moves a node forward, where the gap that it has to close may be another one.
    """
    around = _gaps_around(offer, node[0].node)
    rank = _rank(node)
    for device in node:
        for position in range(len(others) + 1):
            more_bytes = max(0, _lacking(offer, node, device, around[position]) - device.limit_bytes)
            if position < len(others):
                total_bytes, behind = _rank(others[position])
                more_bytes = max(more_bytes, rank[0] - total_bytes + (rank[1] > behind))
            if position == 0 or _rank(others[position - 1]) < (rank[0] - more_bytes, rank[1]):
                yield more_bytes, device


def _gaps_around(offer: _Offer, node: NodeId) -> list[LayerRange]:
    """For each place behind the head that the node can have, what the other nodes leave there."""
    others = [device for device in offer.order if device.node != node]
    around = gaps(offer.costs.layer_bytes(), [offer.room(device) for device in others])
    ends = [
        index
        for index, device in enumerate(others)
        if index + 1 == len(others) or others[index + 1].node != device.node
    ]
    return [around[index + 1] for index in ends]


def _lacking(offer: _Offer, node: Sequence[DeviceCapacity], device: DeviceCapacity, gap: LayerRange) -> int:
    """The limit with which `device` holds what the node's other devices leave of a gap."""
    index = node.index(device)
    before, behind = ([offer.room(other) for other in part] for part in (node[:index], node[index + 1 :]))
    return _gap_bytes(offer.costs, narrowed(offer.costs.layer_bytes(), gap, before, behind))


def _gap_bytes(costs: Costs, layers: LayerRange) -> int:
    """What a node needs to hold these layers, workspace included; nothing for none."""
    if not len(layers):
        return 0
    return costs.workspace_bytes + sum(costs.layer_bytes()[layers.start : layers.end])
