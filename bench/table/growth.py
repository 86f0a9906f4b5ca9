"""How speed changes with context, streams, stages, delay and bandwidth: measured, beside what the cost model says.

On a smaller model of as many layers, so that it takes minutes. Nodes take turns on two cores, each with one thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.table import wire
from bench.table.costs import LOOPBACK, Calibration, Case, Costs, Way, knees
from bench.table.model import SMALL, checkpoint
from bench.table.ours import Ours, Place, Serving, running

CONTEXTS: Final = (128, 512, 1024, 2048, 4096, 8192)
STREAMS: Final = (1, 2, 4, 8, 16, 32, 64)
STAGES: Final = (1, 2, 3, 4, 6, 8)
DELAYS_MS: Final = (0, 1, 5, 10, 20)
MEGABITS: Final = (10, 100, 1000)
NEAR: Final = 16
"""Tokens in front of a decode, where the context is not what is looked at."""
CROWD: Final = 16
PROMPT: Final = 256
TOKENS: Final = 32
CORES: Final = 2
SAY: Final = print
_BFLOAT16_BYTES: Final = 2


@dataclass(frozen=True, slots=True)
class Point:
    """Tokens a second; `measured` None where this machine cannot."""

    x: float
    measured: float | None
    predicted: float
    biggest: str = ""
    """What most of a step is, by the model."""


@dataclass(frozen=True, slots=True)
class Curve:
    """`line`: which of several in one picture, that of `by`."""

    by: str
    line: str
    points: tuple[Point, ...]

    def sentences(self) -> list[str]:
        """One for each knee."""
        points = [point for point in self.points if point.measured]
        turns, expected = knees([p.measured or 0.0 for p in points]), knees([p.predicted for p in points])
        return [self._sentence(points[index - 1], points[index], index in expected) for index in turns]

    def _sentence(self, before: Point, here: Point, is_predicted: bool) -> str:
        where = f"{self.by}, {self.line}, at {here.x:g}"
        if here.biggest != before.biggest:
            return f"{where}: most of a step is no longer {before.biggest} but {here.biggest}."
        told = "the model bends there too" if is_predicted else "the model has no bend there"
        return f"{where}: {told}; most of a step is {here.biggest}."

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Growth:
    """The curves in the making: what is served, and a model that knows what was measured so far."""

    serving: Serving
    folder: Path
    costs: Costs
    say: Callable[[str], None]

    def point(self, x: float, case: Case, ours: Ours | None) -> Point:
        """Measured three times, unless there is nobody to ask."""
        measured = median(asked(ours, case) for _ in range(3)) if ours else None
        parts = self.costs.parts(case)
        found = Point(x, measured, self.costs.rate(case), max(parts, key=parts.__getitem__))
        self.say(f"{case}: {found.measured or 0:.1f}, predicted {found.predicted:.1f}")
        return found

    @contextmanager
    def nodes(self, count: int) -> Iterator[Ours]:
        """Each on a core, round and round."""
        places = [Place((number % CORES,)) for number in range(count)]
        with tempfile.TemporaryDirectory(dir=self.folder) as name, running(Path(name), self.serving, places) as ours:
            yield ours

    @contextmanager
    def distant(self, way: Way) -> Iterator[Ours]:
        """Two nodes with `way` between them. Raises NoWireError."""
        bits_per_s = None if way.bytes_per_s == LOOPBACK.bytes_per_s else way.bytes_per_s * 8
        with wire.hosts(2, way.delay_s, bits_per_s) as hosts, wire.inside(hosts[0]):
            places = [Place((number % CORES,), host) for number, host in enumerate(hosts)]
            with (
                tempfile.TemporaryDirectory(dir=self.folder) as name,
                running(Path(name), self.serving, places) as ours,
            ):
                yield ours


def asked(ours: Ours, case: Case) -> float:
    """Tokens a second."""
    if case.prompt_tokens:
        return ours.prefill(case.prompt_tokens)
    return ours.decode(case.context, TOKENS, case.streams)


def calibrated(growth: Growth) -> Costs:
    """The model's constants, out of five measurements."""
    near, far = Case(1, NEAR), Case(1, CONTEXTS[3])
    with growth.nodes(1) as ours:
        one, crowd, behind, prefill = (
            median(asked(ours, case) for _ in range(3))
            for case in (near, Case(CROWD, NEAR), far, Case(prompt_tokens=PROMPT))
        )
    with growth.nodes(2) as ours:
        two = median(asked(ours, near) for _ in range(3))
    found = Calibration(NEAR, one, CROWD, crowd, far.context, behind, PROMPT, prefill, two)
    return found.costs(growth.serving.shape.hidden * _BFLOAT16_BYTES)


def measure(work: Path, folder: Path, say: Callable[[str], None], only: Sequence[str] = ()) -> Iterator[Curve]:
    """The curves, one after the other; `only` those by these names."""
    serving = Serving(
        SMALL, checkpoint(SMALL, work), "int8", context_tokens=CONTEXTS[-1] + TOKENS, memory_bytes=1 << 30
    )
    growth = Growth(serving, folder, Costs(0.0, 0.0, 0.0, 0.0, 0.0, 0), say)
    growth.costs = calibrated(growth)
    say(f"{growth.costs}")
    kinds: Mapping[str, Callable[[Growth], Iterator[Curve]]] = {
        "context": _by_context,
        "streams": _by_streams,
        "stages": _by_stages,
        "delay": _by_delay,
        "bandwidth": _by_bandwidth,
    }
    for name in only or kinds:
        yield from kinds[name](growth)


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
        with growth.distant(way) as ours:
            for name, case in cases.items():
                lines[name].append(growth.point(x, case(way=way), ours))
    yield from (Curve(by, name, tuple(points)) for name, points in lines.items())


def _streams(count: int) -> str:
    return f"{count} stream{'s' if count > 1 else ''}"
