"""Limits follow what a node says that it can hold, once it lasts."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.planning_values import node_facts
from transport.messages import DeviceLoad, NodeLoad
from vramancer_cli.cluster.records import NodeRecord
from vramancer_cli.cluster.shrink import GROW_S, SHRINK_S, shrunk

RECORD = NodeRecord(node_facts(1, 1000, 500), False, 0.0, 0.0, (1000, 500))


def load(*holdable: int | None) -> NodeLoad:
    return NodeLoad(tuple(DeviceLoad(0, 0, holdable_bytes=size) for size in holdable), 0)


def after(record: NodeRecord, said: NodeLoad, seconds: float, since: float = 0.0) -> NodeRecord:
    """A heartbeat each second."""
    for second in range(int(seconds) + 1):
        record = shrunk(record, said, since + second)
    return record


def test_a_limit_falls_once_it_has_lasted() -> None:
    assert after(RECORD, load(400, 500), SHRINK_S - 1).limits == (1000, 500)
    fallen = after(RECORD, load(400, 500), SHRINK_S)
    assert (fallen.limits, fallen.usual_limits) == ((400, 500), (1000, 500))
    assert after(RECORD, load(1000, 0), SHRINK_S).limits == (1000, 0), "a device that has gone"


def test_what_is_missing_for_a_moment_moves_nothing() -> None:
    record = after(RECORD, load(400, 500), SHRINK_S - 1)
    record = shrunk(record, load(1000, 500), SHRINK_S)
    assert shrunk(record, load(400, 500), SHRINK_S + 1).limits == (1000, 500)


def test_it_rises_again_when_there_has_been_room_for_longer() -> None:
    fallen = after(RECORD, load(400, 500), SHRINK_S)
    assert after(fallen, load(990, 500), GROW_S - 1, 100.0).limits == (400, 500)
    risen = after(fallen, load(990, 500), GROW_S, 100.0)
    assert (risen.limits, risen.usual_limits) == ((1000, 500), ())


def test_a_node_that_says_nothing_keeps_its_limits() -> None:
    for said in (load(None, None), load(), NodeLoad((DeviceLoad(1, 1),), 0)):
        assert after(RECORD, said, 100) == RECORD


@given(st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 3000)), min_size=1, max_size=80))
def test_a_limit_is_never_above_the_promise_and_what_wavers_moves_nothing(said: list[tuple[int, int]]) -> None:
    record, changes = RECORD, 0
    for second, (one, other) in enumerate(said):
        before = record.limits
        record = shrunk(record, load(one, other), float(second))
        changes += record.limits != before
        assert all(now <= promised for now, promised in zip(record.limits, (1000, 500), strict=True))
        assert record.usual_limits in ((), (1000, 500))
    assert changes <= len(said) / SHRINK_S
    assert replace(record, limits=(1000, 500), usual_limits=(), differs_since=None) == RECORD
