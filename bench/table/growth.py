"""How speed changes with context, streams, stages, delay and bandwidth: measured, beside what the cost model says.

On a smaller model of as many layers, so that it takes minutes. Nodes take turns on two cores, each with one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.table import scenes
from bench.table.costs import LOOPBACK, Case, Costs, Way, knees
from bench.table.model import SMALL, checkpoint
from bench.table.ours import Ours, Serving
from bench.table.scenes import CROWD, NEAR, PROMPT
from bench.table.streams import NotMeasuredError
from bench.table.wire import NoWireError

CONTEXTS: Final = (128, 512, 1024, 2048, 4096, 8192)
STREAMS: Final = (1, 2, 4, 8, 16, 32, 64)
STAGES: Final = (1, 2, 3, 4, 6, 8)
DELAYS_MS: Final = (0, 1, 5, 10, 20)
MEGABITS: Final = (10, 100, 1000)


@dataclass(frozen=True, slots=True)
class Point:
    """Tokens a second. `biggest`: what most of a step is, by the model."""

    x: float
    measured: float
    predicted: float
    biggest: str


@dataclass(frozen=True, slots=True)
class Curve:
    """`line`: which of several in one picture, that of `by`."""

    by: str
    line: str
    points: tuple[Point, ...]

    def sentences(self) -> list[str]:
        """One for each knee."""
        turns, expected = knees([p.measured for p in self.points]), knees([p.predicted for p in self.points])
        return [self._sentence(self.points[index], self.points[index + 1], index in expected) for index in turns]

    def _sentence(self, here: Point, behind: Point, is_predicted: bool) -> str:
        where = f"{self.by} {here.x:g}, {self.line}"
        told = "as the model has it" if is_predicted else "which the model does not explain"
        if behind.biggest != here.biggest:
            return f"{where}: behind it most of a step is {behind.biggest}, no longer {here.biggest}; {told}."
        return f"{where}: most of a step is {here.biggest} before and behind it; {told}."

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Growth:
    """What is served, and a model that knows what it costs."""

    serving: Serving
    folder: Path
    costs: Costs
    say: Callable[[str], None]

    def nodes(self, count: int, way: Way = LOOPBACK) -> AbstractContextManager[Ours]:
        return scenes.nodes(self.folder, self.serving, count, way)

    def point(self, x: float, case: Case, ours: Ours) -> Point:
        parts = self.costs.parts(case)
        found = Point(x, scenes.asked(ours, case), self.costs.rate(case), max(parts, key=parts.__getitem__))
        self.say(f"{case}: {found.measured:.1f}, predicted {found.predicted:.1f}")
        return found


def measure(work: Path, folder: Path, say: Callable[[str], None], only: Sequence[str]) -> Iterator[Curve]:
    """The curves by each of these KINDS, one after the other; what cannot be measured here is left out, and said."""
    serving = Serving(
        SMALL, checkpoint(SMALL, work), "int8", context_tokens=CONTEXTS[-1] + 2 * scenes.TOKENS, memory_bytes=1 << 30
    )
    growth = Growth(serving, folder, scenes.calibrated(folder, serving), say)
    say(f"{growth.costs}")
    for name in only:
        try:
            yield from KINDS[name](growth)
        except (NoWireError, NotMeasuredError) as error:
            say(f"by {name}: not measured: {error}")


def _by_context(growth: Growth) -> Iterator[Curve]:
    with growth.nodes(1) as ours:
        points = [growth.point(context, Case(1, context), ours) for context in CONTEXTS]
    yield Curve("context", "1 stream", tuple(points))


def _by_streams(growth: Growth) -> Iterator[Curve]:
    with growth.nodes(1) as ours:
        points = [growth.point(streams, Case(streams, NEAR), ours) for streams in STREAMS]
    yield Curve("streams", "one stage", tuple(points))


def _by_stages(growth: Growth) -> Iterator[Curve]:
    lines: dict[int, list[Point]] = {1: [], CROWD: []}
    for stages in STAGES:
        with growth.nodes(stages) as ours:
            for streams, points in lines.items():
                points.append(growth.point(stages, Case(streams, NEAR, stages), ours))
    yield from (Curve("stages", _streams(count), tuple(points)) for count, points in lines.items())


def _by_delay(growth: Growth) -> Iterator[Curve]:
    ways = {float(delay): Way(delay / 1000) for delay in DELAYS_MS}
    cases = {_streams(count): partial(Case, count, NEAR, 2) for count in (1, CROWD)}
    yield from _by_way(growth, "delay", ways, cases)


def _by_bandwidth(growth: Growth) -> Iterator[Curve]:
    """The last one is the wire without a limit."""
    ways = {float(rate): Way(bytes_per_s=rate * 1e6 / 8) for rate in MEGABITS} | {10.0 * MEGABITS[-1]: LOOPBACK}
    cases = {
        _streams(CROWD): partial(Case, CROWD, NEAR, 2),
        f"prefill {4 * PROMPT}": partial(Case, stages=2, prompt_tokens=4 * PROMPT),
    }
    yield from _by_way(growth, "bandwidth", ways, cases)


def _by_way(
    growth: Growth, by: str, ways: Mapping[float, Way], cases: Mapping[str, Callable[..., Case]]
) -> Iterator[Curve]:
    lines: dict[str, list[Point]] = {name: [] for name in cases}
    for x, way in ways.items():
        with growth.nodes(2, way) as ours:
            for name, case in cases.items():
                lines[name].append(growth.point(x, case(way=way), ours))
    yield from (Curve(by, name, tuple(points)) for name, points in lines.items())


def _streams(count: int) -> str:
    return f"{count} stream{'s' if count > 1 else ''}"


KINDS: Final[Mapping[str, Callable[[Growth], Iterator[Curve]]]] = {
    "context": _by_context,
    "streams": _by_streams,
    "stages": _by_stages,
    "delay": _by_delay,
    "bandwidth": _by_bandwidth,
}
