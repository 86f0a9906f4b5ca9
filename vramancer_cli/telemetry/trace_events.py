"""A trace as a file for ui.perfetto.dev and chrome://tracing. Pure, standard library only.

Source: the Trace Event Format, JSON object form: complete events (`ph` X, with `ts` and `dur` in microseconds),
metadata (M) that names processes and threads, and flows (s, f) as arrows from a step's stage to its next. A node is a
process, each of its threads a thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any, Final

from vramancer_cli.telemetry.cluster_trace import DEVICE_KINDS, LOOP_KINDS, ClusterTrace, NodeTrace, TracedSpan

Event = dict[str, Any]

LOOP, RECEIVE, SEND, DEVICE = 1, 2, 3, 10
"""Thread ids; that of a node's device number n is DEVICE + n."""
LEAST_WAIT_S: Final = 50e-6
"""Shorter gaps on a device's thread are not drawn."""


def trace_events(trace: ClusterTrace) -> dict[str, Any]:
    """The file's JSON object."""
    events: list[Event] = []
    for process, node in enumerate(trace.nodes, start=1):
        events += _names(process, node)
        events += (_complete(process, span) for span in node.spans)
        events += _waits(process, node)
    events += _flows(trace)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"program": "VRAMancer"}}


def _names(process: int, node: NodeTrace) -> Iterator[Event]:
    unsure = f" (clock ± {node.clock_error_s * 1e3:.2f} ms)" if node.clock_error_s else ""
    yield _metadata("process_name", process, 0, {"name": node.name + unsure})
    yield _metadata("process_sort_index", process, 0, {"sort_index": process})
    for thread in sorted({_thread(span) for span in node.spans}):
        yield _metadata("thread_name", process, thread, {"name": _thread_name(thread)})
        yield _metadata("thread_sort_index", process, thread, {"sort_index": thread})


def _metadata(name: str, process: int, thread: int, args: Event) -> Event:
    return {"name": name, "ph": "M", "pid": process, "tid": thread, "args": args}


def _thread(span: TracedSpan) -> int:
    if span.kind in DEVICE_KINDS:
        return DEVICE + span.device
    return LOOP if span.kind in LOOP_KINDS else SEND if span.kind == "send" else RECEIVE


def _thread_name(thread: int) -> str:
    names = {LOOP: "scheduling", RECEIVE: "receiving", SEND: "sending"}
    return names.get(thread, f"device {thread - DEVICE}")


def _complete(process: int, span: TracedSpan) -> Event:
    name = f"{span.kind} {span.phase}".strip() if span.kind == "compute" else span.kind
    args = {"step": span.number, "stage": span.stage}
    if span.tokens:
        args |= {"rows": span.rows, "tokens": span.tokens, "prompt_tokens": span.prompt_tokens}
    return _slice(name, span.kind, process, _thread(span), (span.began_s, span.ended_s), args)


def _slice(name: str, category: str, process: int, thread: int, between: tuple[float, float], args: Event) -> Event:
    began, ended = map(_microseconds, between)
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "ts": began,
        "dur": round(max(0.0, ended - began), 1),
        "pid": process,
        "tid": thread,
        "args": args,
    }


def _waits(process: int, node: NodeTrace) -> Iterator[Event]:
    """What lies between two spans on a device's thread."""
    for device in sorted({span.device for span in node.spans if span.kind in DEVICE_KINDS}):
        for before, after in pairwise(node.on_device(device)):
            if after.began_s - before.ended_s >= LEAST_WAIT_S:
                between = before.ended_s, after.began_s
                yield _slice("wait for input", "wait", process, DEVICE + device, between, {})


def _flows(trace: ClusterTrace) -> Iterator[Event]:
    """Arrows from where a stage computed a step to where the next one did."""
    computed: dict[int, list[tuple[int, TracedSpan]]] = {}
    for process, node in enumerate(trace.nodes, start=1):
        for span in node.of_kind("compute"):
            computed.setdefault(span.number, []).append((process, span))
    for number, places in computed.items():
        places.sort(key=lambda place: place[1].stage)
        yield from _arrows(number, pairwise(places))


def _arrows(number: int, pairs: Iterable[tuple[tuple[int, TracedSpan], tuple[int, TracedSpan]]]) -> Iterator[Event]:
    for (process, span), (next_process, following) in pairs:
        if following.stage == span.stage + 1:
            one = {"name": "activation", "cat": "flow", "id": f"{number}.{span.stage}"}
            start, end = _microseconds(span.began_s), _microseconds(following.began_s)
            yield one | {"ph": "s", "ts": start, "pid": process, "tid": _thread(span)}
            yield one | {"ph": "f", "bp": "e", "ts": end, "pid": next_process, "tid": _thread(following)}


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 1)
