"""What a trace adds up to: how busy each stage was, what the head's own work cost. Pure, standard library only.

Between the first and the last span of the trace: what was before or after is nobody's idleness.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from vramancer_cli.telemetry.cluster_trace import ClusterTrace, StagePlace, TracedSpan


@dataclass(frozen=True, slots=True)
class StageActivity:
    """Shares are of the window. `busy`: the device's thread worked, for this stage or for the model's ends; `waiting`:
    it did not; `sending`: its data link's thread brought frames out meanwhile. Of the `steps`, the mean one took
    `mean_step_s` of the layers' time, and had `mean_rows` rows and `mean_tokens` tokens."""

    stage: int
    node: str
    device: int
    layers: tuple[int, int]
    busy: float
    ends: float
    sending: float
    steps: int
    mean_step_s: float
    mean_rows: float
    mean_tokens: float
    prompt_share: float

    @property
    def waiting(self) -> float:
        return 1.0 - self.busy


@dataclass(frozen=True, slots=True)
class Activity:
    """`step_s`: from one step's results to the next one's, in the mean. `scheduling_s`: of that, what the head took to
    put steps together and to take their results; `scheduling` as a share."""

    window_s: float
    steps: int
    step_s: float
    scheduling_s: float
    scheduling: float
    stages: tuple[StageActivity, ...]

    def to_json(self) -> dict[str, Any]:
        stages = [asdict(stage) | {"waiting": stage.waiting} for stage in self.stages]
        return asdict(self) | {"stages": stages}


def activity(trace: ClusterTrace) -> Activity:
    began_s, ended_s = trace.window
    window_s = ended_s - began_s
    own = list(trace.nodes[0].of_kind("schedule", "commit")) if trace.nodes else []
    steps = sum(span.kind == "commit" for span in own)
    scheduling_s = _total(own)
    stages = (_stage(trace, index, place, window_s) for index, place in enumerate(trace.stages))
    return Activity(
        window_s,
        steps,
        window_s / steps if steps else 0.0,
        scheduling_s / steps if steps else 0.0,
        scheduling_s / window_s if window_s else 0.0,
        tuple(stages),
    )


def _stage(trace: ClusterTrace, index: int, place: StagePlace, window_s: float) -> StageActivity:
    node = trace.node(place.node)
    here = list(node.on_device(place.device))
    computed = [span for span in here if span.kind == "compute" and span.stage == index]
    sent = [span for span in node.of_kind("send") if span.stage == index]
    tokens = sum(span.tokens for span in computed)
    return StageActivity(
        index,
        node.name,
        place.device,
        place.layers,
        _share(here, window_s),
        _share((span for span in here if span.kind in ("embed", "read")), window_s),
        _share(sent, window_s),
        len(computed),
        _mean(span.seconds for span in computed),
        _mean(span.rows for span in computed),
        _mean(span.tokens for span in computed),
        sum(span.prompt_tokens for span in computed) / tokens if tokens else 0.0,
    )


def _total(spans: Iterable[TracedSpan]) -> float:
    return sum(span.seconds for span in spans)


def _share(spans: Iterable[TracedSpan], window_s: float) -> float:
    return min(1.0, _total(spans) / window_s) if window_s else 0.0


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return fmean(listed) if listed else 0.0
