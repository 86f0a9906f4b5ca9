"""Small traces for what shows them: two stages, one on each node, steps that overlap."""

from __future__ import annotations

from vramancer_cli.telemetry.cluster_trace import ClusterTrace, NodeTrace, StagePlace, TracedSpan

HEAD, WORKER = "a" * 32, "b" * 32


def two_stages(steps: int = 20) -> ClusterTrace:
    """Each stage takes 8 ms of every 10: stage 0 at once, stage 1 one step later. The first step is a prompt's."""
    head: list[TracedSpan] = []
    worker: list[TracedSpan] = []
    for number in range(steps):
        at, prompt = number / 100, 4 if number == 0 else 0
        facts = (2, 4 if prompt else 2, prompt)
        head.append(TracedSpan("schedule", number, at, at + 0.0005, 0, 0, *facts))
        head.append(TracedSpan("embed", number, at + 0.0005, at + 0.001, 0, 0))
        head.append(TracedSpan("compute", number, at + 0.001, at + 0.009, 0, 0, *facts))
        head.append(TracedSpan("send", number, at + 0.009, at + 0.0095))
        worker.append(TracedSpan("receive", number, at + 0.0095, at + 0.01, 0, 1))
        worker.append(TracedSpan("compute", number, at + 0.01, at + 0.018, 0, 1, *facts))
        worker.append(TracedSpan("send", number, at + 0.018, at + 0.0185, 0, 1))
        head.append(TracedSpan("read", number, at + 0.0195, at + 0.02, 0, 1))
        head.append(TracedSpan("commit", number, at + 0.02, at + 0.0205))
    places = (StagePlace(HEAD, 0, (0, 4)), StagePlace(WORKER, 0, (4, 8)))
    told = (NodeTrace(HEAD, "attic", 0.0, tuple(sorted(head, key=lambda s: s.began_s))),)
    return ClusterTrace(5.0, places, (*told, NodeTrace(WORKER, "cellar", 0.0002, tuple(worker))))
