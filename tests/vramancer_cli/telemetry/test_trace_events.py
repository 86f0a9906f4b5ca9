"""The file is what the Trace Event Format asks for: every event has the fields of its phase, and they fit together."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.traces import two_stages
from vramancer_cli.telemetry.cluster_trace import ClusterTrace
from vramancer_cli.telemetry.trace_events import trace_events

COMMON = {"name": str, "ph": str, "pid": int, "tid": int}
BY_PHASE: dict[str, dict[str, type | tuple[type, ...]]] = {
    "X": {"cat": str, "ts": (int, float), "dur": (int, float), "args": dict},
    "M": {"args": dict},
    "s": {"cat": str, "id": str, "ts": (int, float)},
    "f": {"cat": str, "id": str, "ts": (int, float), "bp": str},
}
"""Fields beside the common ones; "X" complete, "M" metadata, "s" and "f" flow events."""
METADATA = {
    "process_name": "name",
    "thread_name": "name",
    "process_sort_index": "sort_index",
    "thread_sort_index": "sort_index",
}


def check_trace_file(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Its events, if it is one."""
    assert data["displayTimeUnit"] in ("ms", "ns") and isinstance(data["traceEvents"], list)
    for event in data["traceEvents"]:
        fields = COMMON | BY_PHASE[event["ph"]]
        assert event.keys() == fields.keys()
        assert all(isinstance(event[name], kind) for name, kind in fields.items()), event
        if event["ph"] == "M":
            assert event["args"].keys() == {METADATA[event["name"]]}
        if event["ph"] == "X":
            assert event["dur"] >= 0
    return data["traceEvents"]


@pytest.fixture
def events() -> list[dict[str, Any]]:
    return check_trace_file(json.loads(json.dumps(trace_events(two_stages()))))


def test_every_span_is_a_complete_event_in_microseconds(events: list[dict[str, Any]]) -> None:
    spans = sum(len(node.spans) for node in two_stages().nodes)
    complete = [event for event in events if event["ph"] == "X" and event["cat"] != "wait"]
    assert len(complete) == spans
    first = next(event for event in complete if event["cat"] == "compute")
    assert (first["name"], first["ts"], first["dur"]) == ("compute prefill", 1000.0, 8000.0)
    assert first["args"] == {"step": 0, "stage": 0, "rows": 2, "tokens": 4, "prompt_tokens": 4}


def test_nodes_are_processes_and_their_threads_have_names(events: list[dict[str, Any]]) -> None:
    named = {(e["name"], e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"].endswith("_name")}
    assert named["process_name", 1, 0] == "attic"
    assert named["process_name", 2, 0] == "cellar (clock ± 0.20 ms)"
    threads = {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"}
    assert {(pid, tid) for what, pid, tid in named if what == "thread_name"} == threads


def test_a_device_that_waits_says_so(events: list[dict[str, Any]]) -> None:
    waits = [e for e in events if e["ph"] == "X" and e["cat"] == "wait" and e["pid"] == 2]
    assert len(waits) == 19 and {e["dur"] for e in waits} == {2000.0}


def test_arrows_lead_from_a_steps_stage_to_its_next(events: list[dict[str, Any]]) -> None:
    starts = {e["id"]: e for e in events if e["ph"] == "s"}
    ends = {e["id"]: e for e in events if e["ph"] == "f"}
    assert starts.keys() == ends.keys() and len(starts) == 20
    assert all((starts[n]["pid"], ends[n]["pid"]) == (1, 2) and starts[n]["ts"] < ends[n]["ts"] for n in starts)


def test_nothing_is_a_file_too() -> None:
    assert check_trace_file(trace_events(ClusterTrace(5.0, (), ()))) == []
