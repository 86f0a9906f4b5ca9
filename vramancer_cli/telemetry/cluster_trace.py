"""What all nodes of a cluster did in the same few seconds, by the head's clock. JSON in, JSON out.

Standard library only, so that the small verbs start fast. What it adds up to is `activity`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

DEVICE_KINDS: Final = frozenset({"embed", "compute", "copy", "read"})
"""Kinds of spans on a device's thread. The others are on the head's loop (schedule, commit) and on threads of links."""
LOOP_KINDS: Final = frozenset({"schedule", "commit"})


class TracedSpan(NamedTuple):
    """`transport.messages.Span`, in seconds from the trace's beginning by the head's clock."""

    kind: str
    number: int
    began_s: float
    ended_s: float
    device: int = 0
    stage: int = 0
    rows: int = 0
    tokens: int = 0
    prompt_tokens: int = 0

    @property
    def seconds(self) -> float:
        return self.ended_s - self.began_s

    @property
    def phase(self) -> str:
        """What the step was for, where that is told."""
        if not self.prompt_tokens:
            return "decode" if self.tokens else ""
        return "prefill" if self.prompt_tokens == self.tokens else "mixed"


@dataclass(frozen=True, slots=True)
class StagePlace:
    """Where a stage is: `device` of `node`; `layers` as [start, end)."""

    node: str
    device: int
    layers: tuple[int, int]


@dataclass(frozen=True, slots=True)
class NodeTrace:
    """A node's spans, in order. `clock_error_s`: they may all be early or late by so much; 0 for the head itself.

    None: the node told nothing, or not how late it is; then there are no spans.
    """

    id: str
    name: str
    clock_error_s: float | None
    spans: tuple[TracedSpan, ...] = ()

    def on_device(self, device: int) -> Iterator[TracedSpan]:
        return (span for span in self.spans if span.device == device and span.kind in DEVICE_KINDS)

    def of_kind(self, *kinds: str) -> Iterator[TracedSpan]:
        return (span for span in self.spans if span.kind in kinds)


@dataclass(frozen=True, slots=True)
class ClusterTrace:
    """The last `seconds`. The head is the first of `nodes`; `stages` are those of the plan that serves."""

    seconds: float
    stages: tuple[StagePlace, ...]
    nodes: tuple[NodeTrace, ...]

    def node(self, id: str) -> NodeTrace:  # noqa: A002  # as the plan calls it
        return next((node for node in self.nodes if node.id == id), NodeTrace(id, id[:8], None))

    @property
    def window(self) -> tuple[float, float]:
        """From the first span's beginning to the last one's end; (0, 0) where there is none."""
        spans = [span for node in self.nodes for span in node.spans]
        return min((s.began_s for s in spans), default=0.0), max((s.ended_s for s in spans), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Spans as arrays: there are many."""
        return {
            "seconds": self.seconds,
            "stages": [{"node": s.node, "device": s.device, "layers": list(s.layers)} for s in self.stages],
            "nodes": [
                {"id": n.id, "name": n.name, "clock_error_s": n.clock_error_s, "spans": [list(s) for s in n.spans]}
                for n in self.nodes
            ],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ClusterTrace:
        """Raises KeyError, TypeError, ValueError for what is none."""
        stages = (StagePlace(s["node"], int(s["device"]), (s["layers"][0], s["layers"][1])) for s in data["stages"])
        nodes = (
            NodeTrace(n["id"], n["name"], n["clock_error_s"], tuple(TracedSpan(*span) for span in n["spans"]))
            for n in data["nodes"]
        )
        return cls(float(data["seconds"]), tuple(stages), tuple(nodes))
