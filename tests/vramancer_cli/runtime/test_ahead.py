"""Each worker is told once for each plan what to fetch ahead of time; and only while the plan serves."""

from __future__ import annotations

from tests.helpers.cluster_bench import ClusterBench
from tests.helpers.planning_values import HEAD, MIB, model_facts, node_id, settings
from transport.messages import FetchLayersAhead, Message, Plan
from transport.types import LayerRange, NodeId
from vramancer_cli.errors import DoesNotFitError
from vramancer_cli.planning.placement import place
from vramancer_cli.runtime.ahead import Ahead

FACTS = model_facts()


def test_it_is_told_once_and_again_when_the_nodes_are_others() -> None:
    bench, told = ClusterBench(), list[tuple[NodeId, Message]]()

    def replan(devices: object) -> Plan | None:
        try:
            return place(FACTS, devices, HEAD, settings(), 99)  # pyright: ignore[reportArgumentType]
        except DoesNotFitError:
            return None

    ahead = Ahead(replan, lambda node, message: told.append((node, message)))
    bench.choose(FACTS, settings())
    bench.join_number(0, 9000)
    for number in (1, 2):
        bench.join_number(number, MIB)
    ahead.tell(bench.state)
    assert told == [], "nothing serves yet"
    bench.run_until_quiet()
    for _ in range(3):
        ahead.tell(bench.state)
    assert [node for node, _ in told] == [node_id(1), node_id(2)]
    plan = bench.state.active_plan
    for node, message in told:
        assert isinstance(message, FetchLayersAhead) and message.plan == plan
        (layers,) = message.layers
        held = next(stage.layers for stage in message.plan.stages if stage.node == node)
        assert sorted((layers, held)) == [LayerRange(0, 4), LayerRange(4, 8)]
    bench.lose(2)
    bench.run_until_quiet()
    ahead.tell(bench.state)
    assert [message.layers for _, message in told[2:]] == [()], "nobody can be spared any more"
