"""The record of a node."""

from __future__ import annotations

from dataclasses import replace

from tests.helpers.planning_values import node_facts
from vramancer_cli.cluster.records import NodeRecord, StageRecord


def test_a_fresh_record_is_alive_and_holds_nothing() -> None:
    record = NodeRecord(node_facts(1, 5), False, 1.0, 1.0, 5)
    assert record.alive and not record.direct and record.stage is None
    assert (record.load.memory_used_bytes, record.round_trip_s) == (0, None)
    assert not replace(record, status="lost").alive


def test_direct_follows_the_stage() -> None:
    record = NodeRecord(node_facts(1, 5), False, 1.0, 1.0, 5, stage=StageRecord(1, direct=True))
    assert record.direct
