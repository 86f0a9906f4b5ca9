"""So many nodes with a way between them, and the constants of the cost model as measured with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Final

from bench.table import wire
from bench.table.costs import LOOPBACK, Calibration, Case, Costs, Way
from bench.table.ours import Ours, Place, Serving, running

CORES: Final = 2
"""Nodes are kept on them in turn."""
NEAR: Final = 16
"""Tokens in front of a decode, where the context is not what is looked at."""
FAR: Final = 2048
CROWD: Final = 16
PROMPT: Final = 256
TOKENS: Final = 32
REPETITIONS: Final = 3
_BFLOAT16_BYTES: Final = 2


@contextmanager
def placed(count: int, way: Way = LOOPBACK) -> Iterator[list[Place]]:
    """Places for so many nodes, a core each, the first one on the network where this thread is meanwhile.

    Raises NoWireError where the way is not loopback and networks cannot be made here.
    """
    if way == LOOPBACK:
        yield [Place((number % CORES,)) for number in range(count)]
        return
    bits_per_s = None if way.bytes_per_s == LOOPBACK.bytes_per_s else way.bytes_per_s * 8
    with wire.hosts(count, way.delay_s, bits_per_s) as hosts, wire.inside(hosts[0]):
        yield [Place((number % CORES,), host) for number, host in enumerate(hosts)]


@contextmanager
def nodes(folder: Path, serving: Serving, count: int, way: Way = LOOPBACK) -> Iterator[Ours]:
    with placed(count, way) as places, running(folder, serving, places) as ours:
        yield ours


def asked(ours: Ours, case: Case) -> float:
    """Tokens a second, the middle one of some tries."""
    return median(_once(ours, case) for _ in range(REPETITIONS))


def _once(ours: Ours, case: Case) -> float:
    if case.prompt_tokens:
        return ours.prefill(case.prompt_tokens)
    return ours.decode(case.context, TOKENS, case.streams)


def calibrated(folder: Path, serving: Serving) -> Costs:
    """The model's constants, out of five measurements."""
    near = Case(1, NEAR)
    with nodes(folder, serving, 1) as ours:
        cases = (near, Case(CROWD, NEAR), Case(1, FAR), Case(prompt_tokens=PROMPT))
        one, crowd, far, prefill = (asked(ours, case) for case in cases)
    with nodes(folder, serving, 2) as ours:
        two = asked(ours, near)
    found = Calibration(NEAR, one, CROWD, crowd, FAR, far, PROMPT, prefill, two)
    return found.costs(serving.shape.hidden * _BFLOAT16_BYTES)
